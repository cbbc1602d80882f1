"""Relaxes files of structures by a potential, and writes structures, energies and entries of a convex hull."""

import gzip
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from kldm.errors import KldmError
from kldm.evaluation.results import SAMPLE_FILES, library_versions, write_json, write_samples, write_table
from kldm.interfaces import UNPLACED, Candidate, Json, Potential
from kldm.metrics.relaxing import (
    FAR_OFF,
    RELAXATION_SECONDS,
    Relaxation,
    Relaxed,
    far_off,
    relaxation_versions,
    relaxed,
)
from kldm.reading import read_file, read_reference, record_of
from kldm.recipe import build, overridden
from kldm.runtime.files import atomic_write, make_writable, refuse_existing
from kldm.runtime.paths import expanded
from kldm.runtime.pool import check_work
from kldm.version import __version__

FILES = (*SAMPLE_FILES, "relaxation.csv", "entries.json.gz", "relaxation.json")
"""What a relaxation writes."""


@attrs.frozen(kw_only=True)
class Relaxing:
    """A potential and the settings of the relaxation."""

    potential: Potential
    relaxation: Relaxation = attrs.field(factory=Relaxation)


def relaxing_with(name: str, keys: Mapping[str, Json]) -> Relaxing:
    """A registered potential with the given keys, which are checked like those of a recipe.

    Args:
        name: registered name of the potential.
        keys: values by dotted key, such as ``potential.weights`` and ``relaxation.fmax``.

    Raises:
        KldmError: the name or a key is wrong; the place is the option as the command line spells it.
    """
    for key in keys:
        if key.partition(".")[0] not in ("potential", "relaxation"):
            remedy = "options with a dot are those of the potential and of the relaxation: --relaxation.fmax 0.05"
            raise KldmError("is no key of the potential or the relaxation", place=f"--{key}", remedy=remedy)
    try:
        return build(overridden({"potential": {"@potentials": name}}, keys), Relaxing)[0]
    except KldmError as error:
        place = f"--{error.place}" if error.place else None
        raise KldmError(error.problem, place=place, remedy=error.remedy) from error


def relax_file(
    source: str,
    by: Relaxing,
    out: Path,
    *,
    workers: int = 1,
    time_limit: float = RELAXATION_SECONDS,
    limit: int | None = None,
) -> dict[str, Any]:
    """Relax structures and write to ``out``:

    - ``samples.jsonl``, ``samples.extxyz``, ``structures.zip``: the relaxed structures (``write_samples``), numbered
      like the given ones; ``samples.extxyz`` has their ``energy`` in eV;
    - ``relaxation.csv``: energies, steps and reasons, one row per structure;
    - ``entries.json.gz``: pymatgen's computed entries with their structures, which ``stability.v1`` with the same
      potential takes as its hull;
    - ``relaxation.json``: the potential, counts, failures by reason, notes, and versions.

    Args:
        source: a file in any format of ``kldm.reading``, a folder of samples, or ``DATASET/SPLIT``.
        limit: relax only this many structures, the first ones.

    Raises:
        KldmError: the structures cannot be read, the potential cannot be used, ``out`` has one of these files already,
            or a file cannot be written.
    """
    started = time.monotonic()
    check_work(workers, time_limit)
    refuse_existing(out, FILES)
    given, names = _given(source)
    given = given[:limit]
    make_writable(out)
    structures = [candidate.structure for candidate in given]
    results = relaxed(structures, by.potential, by.relaxation, workers=workers, time_limit=time_limit)
    candidates = [
        attrs.evolve(candidate, structure=result.structure, reason=candidate.reason or result.reason)
        for candidate, result in zip(given, results, strict=True)
    ]
    rows = [_row(candidate, result, names) for candidate, result in zip(candidates, results, strict=True)]
    report: dict[str, Any] = {
        "kldm": __version__,
        "source": source,
        "potential": {"label": by.potential.label, **by.potential.identity},
        "relaxation": attrs.asdict(by.relaxation),
        "requests": len(candidates),
        "relaxed": sum(result.structure is not None for result in results),
        "unconverged": sum(result.structure is not None and not result.converged for result in results),
        "failures": dict(Counter(candidate.reason for candidate in candidates if candidate.structure is None)),
        "notes": _notes(rows),
        "libraries": library_versions() | relaxation_versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_samples(out, candidates, names, [row["energy"] for row in rows])
    write_table(out / "relaxation.csv", rows)
    _write_entries(out / "entries.json.gz", candidates, results, by, names)
    write_json(out / "relaxation.json", report)
    return report


def _given(source: str) -> tuple[Sequence[Candidate], Mapping[int, str]]:
    """The structures, and the names of their targets."""
    path = expanded(source)
    if path.exists():
        file = read_file(record_of(path))
        named = zip(file.candidates, file.names, strict=True)
        return file.candidates, {
            candidate.target: name for candidate, name in named if name and candidate.target != UNPLACED
        }
    reference = read_reference(source)
    rows = enumerate(zip(reference.structures, reference.reasons, strict=True))
    candidates = [Candidate(row, 0, structure, reason) for row, (structure, reason) in rows]
    return candidates, dict(enumerate(reference.ids))


def _row(candidate: Candidate, result: Relaxed, names: Mapping[int, str]) -> dict[str, Any]:
    from kldm.metrics.validity import formula

    succeeded = result.structure is not None
    return {
        "target": None if candidate.target == UNPLACED else candidate.target,
        "candidate": candidate.candidate,
        "name": names.get(candidate.target, ""),
        "formula": formula(candidate),
        "energy": result.energy if succeeded else None,
        "energy_before": result.before if succeeded else None,
        "atoms": len(result.structure) if result.structure is not None else None,
        "steps": result.steps if succeeded else None,
        "converged": result.converged if succeeded else None,
        "reason": candidate.reason,
    }


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences that a reader of the energies must see."""
    known = [row for row in rows if row["energy"] is not None]
    odd = [known[place] for place in far_off([row["energy"] / row["atoms"] for row in known])]
    if not odd:
        return []
    first = f"target {odd[0]['target']} ({odd[0]['formula']}), {odd[0]['energy'] / odd[0]['atoms']:.2f} eV/atom"
    count = "1 energy lies" if len(odd) == 1 else f"{len(odd)} energies lie"
    return [f"{count} more than {FAR_OFF:g} eV/atom from those of the other structures; the first is that of {first}."]


def _write_entries(
    path: Path, candidates: Sequence[Candidate], results: Sequence[Relaxed], by: Relaxing, names: Mapping[int, str]
) -> None:
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    parameters = {"potential": dict(by.potential.identity), "relaxation": attrs.asdict(by.relaxation)}
    entries = []
    for candidate, result in zip(candidates, results, strict=True):
        if result.structure is not None:
            name = names.get(candidate.target) or f"{candidate.target}_{candidate.candidate}"
            entry = ComputedStructureEntry(result.structure, result.energy, parameters=parameters, entry_id=name)
            entries.append(entry.as_dict())
    with atomic_write(path) as temporary, temporary.open("wb") as file, gzip.GzipFile("", "wb", 6, file, 0) as packed:
        packed.write(json.dumps(entries).encode())
