"""Writes the files of a run: structures in formats that other programs read, tables, and JSON."""

import csv
import json
import math
import platform
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kldm.data.formulas import reduced_formula
from kldm.errors import printable
from kldm.interfaces import UNPLACED, Candidate, Json
from kldm.runtime.files import atomic_write

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

LIBRARIES = ("kldm", "torch", "torch-geometric", "pymatgen", "smact", "matminer", "ase", "numpy", "scipy")


SAMPLE_FILES = ("samples.jsonl", "samples.extxyz", "structures.zip")
"""What ``write_samples`` writes."""


def write_samples(
    folder: Path,
    candidates: Sequence[Candidate],
    names: Mapping[int, str] = {},
    energies: Sequence[float | None] | None = None,
) -> None:
    """Write all candidates to ``folder``, each file whole or not at all.

    - ``samples.jsonl`` is the full record. Its rows are ``{"target", "candidate", "structure", "reason"}``, where
      ``structure`` is a pymatgen dict (NaN is written as ``NaN``), or null for a candidate that failed. A failed
      candidate has its atomic numbers as ``species`` if they are known; a selected one has ``"selected": true``; and
      rows of a target with a name have this ``name``.
    - ``samples.extxyz`` is extended xyz with ``target``, ``candidate``, ``formula`` (and ``name``, ``selected``) of
      each structure.
    - ``structures.zip`` holds one CIF per structure, ``<target>_<candidate>_<formula>.cif``. Equal structures make
      equal bytes.

    The last two hold only structures whose numbers are all finite, because others break the programs that read them.

    Args:
        names: names of targets, such as their material ids.
        energies: energy of each candidate in eV, for ``samples.extxyz``.

    Raises:
        KldmError: a file cannot be written.
    """
    with atomic_write(folder / "samples.jsonl") as path, path.open("w", encoding="utf-8") as file:
        for candidate in candidates:
            named = {"name": names[candidate.target]} if names.get(candidate.target) else {}
            file.write(json.dumps(_row(candidate) | named) + "\n")
    finite = [
        (candidate, candidate.structure, energy)
        for candidate, energy in zip(candidates, energies or [None] * len(candidates), strict=True)
        if candidate.structure is not None and _finite(candidate.structure)
    ]
    _write_extxyz(folder / "samples.extxyz", finite, names)
    _write_zip(folder / "structures.zip", [(candidate, structure) for candidate, structure, _ in finite])


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, each on one line. The columns are the keys in the order of their first use; None becomes an
    empty cell, and texts are made ``printable``, so that all programs count the same rows."""
    rows = [{printable(key): printable(v) if isinstance(v, str) else v for key, v in row.items()} for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if columns:
            writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, value: Json) -> None:
    """Write strict JSON, indented."""
    text = json.dumps(strict(value), indent=2, ensure_ascii=False, allow_nan=False, default=plain)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as lines of strict JSON."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(strict(row), default=plain) + "\n" for row in rows)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries behind the results; libraries that are not installed are left out."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def plain(value: object) -> Any:
    """A value of a type that JSON lacks: arrays become lists of numbers, everything else becomes its text."""
    import numpy as np

    return strict(value.tolist()) if isinstance(value, np.ndarray | np.generic) else strict(str(value))


def _row(candidate: Candidate) -> dict[str, Any]:
    structure = candidate.structure
    return {
        "target": None if candidate.target == UNPLACED else candidate.target,
        "candidate": candidate.candidate,
        "structure": None if structure is None else structure.as_dict(),
        "reason": printable(candidate.reason),
        **({"species": candidate.species} if candidate.species else {}),
        **({"selected": True} if candidate.selected else {}),
    }


def strict(value: Json) -> Any:
    """The value for strict JSON: NaN and infinities become null, every sequence becomes a list, and question marks
    replace lone surrogates, which UTF-8 does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {strict(key): strict(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [strict(item) for item in value]
    return value


def _finite(structure: "Structure") -> bool:
    import numpy as np

    return bool(np.isfinite(structure.lattice.matrix).all() and np.isfinite(structure.frac_coords).all())


def _write_extxyz(
    path: Path,
    structures: Iterable[tuple[Candidate, "Structure", float | None]],
    names: Mapping[int, str],
) -> None:
    import ase
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    frames = []
    for candidate, structure, energy in structures:
        info = {"target": candidate.target, "candidate": candidate.candidate, "formula": _formula(structure)}
        if candidate.target in names:
            info["name"] = printable(names[candidate.target])
        if candidate.selected:
            info["selected"] = True
        numbers = [site.specie.Z for site in structure]
        cell = structure.lattice.matrix
        atoms: Any = ase.Atoms(numbers, scaled_positions=structure.frac_coords, cell=cell, pbc=True, info=info)
        if energy is not None:
            atoms.calc = SinglePointCalculator(atoms, energy=energy)  # type: ignore[no-untyped-call]
        frames.append(atoms)
    with atomic_write(path) as temporary:
        write(temporary, frames, format="extxyz")


def _write_zip(path: Path, structures: Iterable[tuple[Candidate, "Structure"]]) -> None:
    from pymatgen.io.cif import CifWriter

    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for candidate, structure in structures:
            name = f"{candidate.target:05d}_{candidate.candidate:02d}_{_formula(structure)}.cif"
            entry = zipfile.ZipInfo(name)  # dated 1980, so that equal structures make equal bytes
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, str(CifWriter(structure)), compress_type=zipfile.ZIP_DEFLATED)


def _formula(structure: "Structure") -> str:
    return reduced_formula(structure.composition)
