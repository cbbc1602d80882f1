"""Files of structures relaxed by a potential: structures, energies and entries of a convex hull on disk."""

import gzip
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from kldm.errors import KldmError
from kldm.evaluation.results import library_versions, write_json, write_samples, write_table
from kldm.interfaces import Candidate, Json, Potential
from kldm.metrics.relaxing import RELAXATION_SECONDS, Relaxation, Relaxed, relaxation_versions, relaxed
from kldm.reading import read_file, read_reference, record_of
from kldm.recipe import build, overridden
from kldm.runtime.files import atomic_write, make_writable
from kldm.runtime.pool import check_work
from kldm.version import __version__


@attrs.frozen(kw_only=True)
class Relaxing:
    """A potential, and how it relaxes."""

    potential: Potential
    relaxation: Relaxation = attrs.field(factory=Relaxation)


def relaxing_with(name: str, keys: Mapping[str, Json]) -> Relaxing:
    """A registered potential, and keys by dotted name, ``potential.weights`` and ``relaxation.fmax``, checked as those
    of a recipe are.

    Raises:
        KldmError: at the option as the command line spells it.
    """
    for key in keys:
        if key.partition(".")[0] not in ("potential", "relaxation"):
            remedy = "options with a dot are those of the potential and of the relaxation: --relaxation.fmax 0.05"
            raise KldmError("says nothing here", place=f"--{key}", remedy=remedy)
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

    - ``samples.jsonl``, ``samples.extxyz``, ``structures.zip``: the relaxed structures (``write_samples``), numbered as
      those that were given; the second with ``energy`` in eV;
    - ``relaxation.csv``: energies, steps and reasons, a row for each;
    - ``entries.json.gz``: pymatgen's computed entries with their structures, the hull of a ``stability.v1`` with the
      same potential;
    - ``relaxation.json``: the potential, counts, failures by reason, versions. An evaluation may write beside it.

    Args:
        source: a file in any format of ``kldm.reading``, a folder of samples, or ``DATASET/SPLIT``.
        limit: only the first so many.

    Raises:
        KldmError: the structures cannot be read, the potential cannot be used, or a file cannot be written.
    """
    started = time.monotonic()
    check_work(workers, time_limit)
    if (out / "samples.jsonl").exists():
        raise KldmError("the folder holds structures already", place=str(out), remedy="choose another --out")
    given, names = _given(source)
    given = given[:limit]
    make_writable(out)
    structures = [one.structure for one in given]
    done = relaxed(structures, by.potential, by.relaxation, workers=workers, time_limit=time_limit)
    made = [
        attrs.evolve(candidate, structure=one.structure, reason=candidate.reason or one.reason)
        for candidate, one in zip(given, done, strict=True)
    ]
    rows = [_row(*pair, names) for pair in zip(made, done, strict=True)]
    report: dict[str, Any] = {
        "kldm": __version__,
        "source": source,
        "potential": {"label": by.potential.label, **by.potential.identity},
        "relaxation": attrs.asdict(by.relaxation),
        "requests": len(made),
        "relaxed": sum(one.structure is not None for one in done),
        "unconverged": sum(one.structure is not None and not one.converged for one in done),
        "failures": dict(Counter(one.reason for one in made if one.structure is None)),
        "libraries": library_versions() | relaxation_versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_samples(out, made, names, [row["energy"] for row in rows])
    write_table(out / "relaxation.csv", rows)
    _write_entries(out / "entries.json.gz", made, done, by, names)
    write_json(out / "relaxation.json", report)
    return report


def _given(source: str) -> tuple[Sequence[Candidate], Mapping[int, str]]:
    """The structures, and the names of their targets."""
    path = Path(source).expanduser()
    if path.exists():
        file = read_file(record_of(path))
        return file.candidates, {
            one.target: name for one, name in zip(file.candidates, file.names, strict=True) if name
        }
    reference = read_reference(source)
    rows = enumerate(zip(reference.structures, reference.reasons, strict=True))
    candidates = [Candidate(row, 0, structure, reason) for row, (structure, reason) in rows]
    return candidates, dict(enumerate(reference.ids))


def _row(candidate: Candidate, one: Relaxed, names: Mapping[int, str]) -> dict[str, Any]:
    from kldm.metrics.validity import formula

    there = one.structure is not None
    return {
        "target": candidate.target,
        "candidate": candidate.candidate,
        "name": names.get(candidate.target, ""),
        "formula": formula(candidate),
        "energy": one.energy if there else None,
        "energy_before": one.before if there else None,
        "atoms": len(one.structure) if one.structure is not None else None,
        "steps": one.steps if there else None,
        "converged": one.converged if there else None,
        "reason": candidate.reason,
    }


def _write_entries(
    path: Path, made: Sequence[Candidate], done: Sequence[Relaxed], by: Relaxing, names: Mapping[int, str]
) -> None:
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    parameters = {"potential": dict(by.potential.identity), "relaxation": attrs.asdict(by.relaxation)}
    entries = []
    for candidate, one in zip(made, done, strict=True):
        if one.structure is not None:
            name = names.get(candidate.target) or f"{candidate.target}_{candidate.candidate}"
            entry = ComputedStructureEntry(one.structure, one.energy, parameters=parameters, entry_id=name)
            entries.append(entry.as_dict())
    with atomic_write(path) as temporary, temporary.open("wb") as file, gzip.GzipFile("", "wb", 6, file, 0) as packed:
        packed.write(json.dumps(entries).encode())
