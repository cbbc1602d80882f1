"""What a run leaves behind: structures in formats that other programs read, tables, reports; and their readers."""

import csv
import json
import math
import platform
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kldm.errors import KldmError
from kldm.files import atomic_write
from kldm.interfaces import Candidate, Json

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core.structure import Structure

LIBRARIES = ("kldm", "torch", "torch-geometric", "pymatgen", "ase", "numpy")

_NUMBERED = re.compile(r"(\d+)_(\d+)_[^/]*\.cif")
_NEGATIVE_LENGTH = re.compile(r"^_cell_length_[abc]\s+['\"]?-", re.MULTILINE)


def write_samples(folder: Path, candidates: Sequence[Candidate], names: Sequence[str] = ()) -> None:
    """Write all candidates to ``folder``, each file whole or not at all.

    - ``samples.jsonl``, the full record: rows ``{"target", "candidate", "structure", "reason"}``, where structure is
      a pymatgen dict (NaN is written as ``NaN``), or null for a candidate that failed.
    - ``samples.extxyz``: extended xyz with ``target``, ``candidate``, ``formula`` (and ``name``) of each structure.
    - ``structures.zip``: one CIF per structure, ``<target>_<candidate>_<formula>.cif``; equal structures make equal
      bytes.

    The last two hold the structures whose numbers are all finite; others would break the programs that read them.

    Args:
        names: the name of each target, such as its material id; as many as there are targets, or none.

    Raises:
        KldmError: a file cannot be written.
    """
    with atomic_write(folder / "samples.jsonl") as path, path.open("w", encoding="utf-8") as file:
        for candidate in candidates:
            file.write(json.dumps(_row(candidate)) + "\n")
    finite = [(c, c.structure) for c in candidates if c.structure is not None and _finite(c.structure)]
    _write_extxyz(folder / "samples.extxyz", finite, names)
    _write_zip(folder / "structures.zip", finite)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV; the columns are the keys in the order in which they first come, None is an empty cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if columns:
            writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, value: Json) -> None:
    """Write strict JSON, indented; NaN and infinities, which strict JSON lacks, become null."""
    text = json.dumps(_strict(value), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_samples(path: str | Path) -> tuple[Candidate, ...]:
    """Read candidates from ``.jsonl``, ``.extxyz`` / ``.xyz``, or a ``.zip`` of CIFs, as ``write_samples`` leaves them.

    A structure that cannot be built (a broken CIF, a cell without volume, an unknown element) is a failed candidate
    with its reason. What does not say which target it answers gets its position in the file, as candidate 0.

    Raises:
        KldmError: the file is missing, of another kind, or not readable at all.
    """
    path = Path(path)
    readers = {".jsonl": _read_jsonl, ".extxyz": _read_extxyz, ".xyz": _read_extxyz, ".zip": _read_zip}
    if path.suffix not in readers:
        remedy = f"give one of {', '.join(readers)}"
        raise KldmError(f"no samples are read from {path.suffix or 'such'} files", place=str(path), remedy=remedy)
    try:
        return tuple(readers[path.suffix](path))
    except OSError as error:
        raise KldmError(f"cannot read the file: {error.strerror or error}", place=str(path)) from error


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries behind the results; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _row(candidate: Candidate) -> dict[str, Any]:
    structure = candidate.structure
    return {
        "target": candidate.target,
        "candidate": candidate.candidate,
        "structure": None if structure is None else structure.as_dict(),
        "reason": candidate.reason,
    }


def _strict(value: Json) -> Json:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_strict(item) for item in value]
    return value


def _finite(structure: "Structure") -> bool:
    import numpy as np

    return bool(np.isfinite(structure.lattice.matrix).all() and np.isfinite(structure.frac_coords).all())


def _write_extxyz(path: Path, structures: Iterable[tuple[Candidate, "Structure"]], names: Sequence[str]) -> None:
    import ase
    from ase.io import write

    frames = []
    for candidate, structure in structures:
        info = {"target": candidate.target, "candidate": candidate.candidate, "formula": _formula(structure)}
        if candidate.target < len(names):
            info["name"] = names[candidate.target]
        numbers = [site.specie.Z for site in structure]
        cell = structure.lattice.matrix
        frames.append(ase.Atoms(numbers, scaled_positions=structure.frac_coords, cell=cell, pbc=True, info=info))
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
    return str(structure.composition.reduced_formula)


def _read_jsonl(path: Path) -> Iterable[Candidate]:
    position = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise KldmError("the line is not JSON", place=place) from error
            if not isinstance(row, dict) or "structure" not in row:
                raise KldmError("the row has no 'structure'", place=place, remedy="write null where there is none")
            target, candidate = _numbers(row, position, place)
            position += 1
            yield _from_dict(target, candidate, row["structure"], str(row.get("reason", "")))


def _numbers(record: Mapping[str, Any], position: int, place: str) -> tuple[int, int]:
    target, candidate = record.get("target", position), record.get("candidate", 0)
    if not (isinstance(target, Integral) and isinstance(candidate, Integral)):
        raise KldmError("'target' and 'candidate' must be whole numbers", place=place)
    return int(target), int(candidate)


def _from_dict(target: int, number: int, value: Any, reason: str) -> Candidate:
    from pymatgen.core.structure import Structure

    if value is None:
        return Candidate(target, number, None, reason or "no structure")
    try:
        lattice = value["lattice"]
        if lattice.get("matrix") is None:
            return Candidate(target, number, None, reason or "no cell")
        if any(lattice.get(edge) is not None and lattice[edge] <= 0 for edge in "abc"):
            return Candidate(target, number, None, "cell length not positive")
        return Candidate(target, number, Structure.from_dict(value), reason)
    except Exception as error:  # any nonsense may stand in a dict; it is this candidate's failure
        return Candidate(target, number, None, f"structure cannot be built: {type(error).__name__}")


def _read_extxyz(path: Path) -> Iterable[Candidate]:
    from ase.io import read

    try:
        frames = cast("list[Atoms]", read(path, index=":", format="extxyz"))
    except Exception as error:  # the reader raises all sorts; what matters is that the file is at fault
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's fault: a missing file, a broken disk
        raise KldmError(f"not an extended xyz file ({error})", place=str(path)) from error
    for position, atoms in enumerate(frames):
        target, number = _numbers(atoms.info, position, f"{path}, frame {position}")
        yield _from_atoms(target, number, atoms)


def _from_atoms(target: int, number: int, atoms: "Atoms") -> Candidate:
    from pymatgen.core.structure import Structure

    try:
        structure = Structure(atoms.cell.array, atoms.numbers.tolist(), atoms.positions, coords_are_cartesian=True)
    except Exception as error:  # a flat or missing cell, an unknown element: this candidate's failure
        return Candidate(target, number, None, f"structure cannot be built: {type(error).__name__}")
    return Candidate(target, number, structure)


def _read_zip(path: Path) -> Iterable[Candidate]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if n.endswith(".cif") and not n.startswith("__MACOSX/"))
            texts = [archive.read(name).decode("utf-8", errors="replace") for name in names]
    except zipfile.BadZipFile as error:
        raise KldmError("not a zip file, or a damaged one", place=str(path)) from error
    numbered = [_NUMBERED.fullmatch(Path(name).name) for name in names]
    for position, (found, text) in enumerate(zip(numbered, texts, strict=True)):
        # a mixture of numbered and other names says nothing about targets, so then position decides for all
        target, number = (int(found[1]), int(found[2])) if found and all(numbered) else (position, 0)
        yield _from_cif(target, number, text)


def _from_cif(target: int, number: int, text: str) -> Candidate:
    from pymatgen.io.cif import CifParser

    if _NEGATIVE_LENGTH.search(text):
        return Candidate(target, number, None, "cell length not positive")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's remarks on what it mends; failures raise
            parser = CifParser.from_str(text, frac_tolerance=0.0)  # no rounding of 0.3333 to 1/3
            structure = parser.parse_structures(primitive=False, on_error="raise")[0]
    except Exception as error:  # the parser raises all sorts; each is one broken CIF
        return Candidate(target, number, None, f"CIF cannot be read: {type(error).__name__}")
    return Candidate(target, number, structure)
