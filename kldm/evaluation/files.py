"""Files of samples judged beside a reference, whichever program made them."""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from kldm.errors import KldmError
from kldm.evaluation.judging import judgement, measure, nested, write_rows
from kldm.evaluation.overlap import of_structures, overlap_note
from kldm.evaluation.results import library_versions, write_json
from kldm.interfaces import Candidate, Measurement, Metric, Samples
from kldm.metrics.fingerprinting.coverage import CUTOFFS
from kldm.reading import Alignment, Reference, SampleFile, align, read_file, read_reference, record_of
from kldm.recipe import build
from kldm.runtime.files import make_writable
from kldm.version import __version__

Task = Literal["csp", "dng", "stability"]


@attrs.frozen(kw_only=True)
class _Scoring:
    metric: Metric


def metric_for(task: Task, options: Mapping[str, Any]) -> Metric:
    """The registered metric of a task with these options, checked as those of a recipe are.

    Raises:
        KldmError: at the option as the command line spells it.
    """
    name = {"csp": "match_rate.v1", "dng": "de_novo.v1", "stability": "stability.v1"}[task]
    try:
        built, _ = build({"metric": {"@metrics": name, **options}}, _Scoring)
    except KldmError as error:
        section, _, key = (error.place or "").partition(".")
        if not key.startswith(("potential.", "relaxation.")):  # these are written with their dots
            key = key.partition(".")[0].replace("_", "-")
        place = f"--{key}" if section == "metric" else None
        raise KldmError(error.problem, place=place, remedy=error.remedy) from error
    return built.metric


def usual_cutoffs(reference: str) -> str:
    """The data set whose cutoffs of coverage go with a reference."""
    name = reference.partition("/")[0]
    return name if name in CUTOFFS else "mp_20"


def score_files(
    paths: Sequence[Path],
    reference: str,
    task: Task,
    metric: Metric,
    out: Path,
    *,
    k: int | None = None,
    train: str = "",
    requested: bool = False,
) -> dict[str, Any]:
    """Judge samples and write ``report.json``, ``results.csv`` and ``results.jsonl`` to ``out``.

    Args:
        paths: files in any format of ``kldm.reading``; several are several seeds.
        reference: ``DATASET/SPLIT`` or a file.
        task: ``csp``, where a sample answers a row of the reference; ``dng`` and ``stability``, where it answers none.
        metric: what judges; its values stand in the report under the task's name.
        out: folder.
        k: of crystal structure prediction, at most so many candidates of each target.
        train: the training set, ``DATASET/SPLIT`` or a file, to see whether the reference overlaps with it.
        requested: of crystal structure prediction, judge the rows of the reference alone that the samples carry as
            their targets, failed ones included, instead of counting all others as failures.

    Raises:
        KldmError: a file or the reference cannot be read, they do not belong together, or the samples do not carry
            their targets although only these are to be judged.
    """
    started = time.monotonic()
    for path in paths:
        if paths.count(path) > 1:
            raise KldmError("is given twice", place=str(path), remedy="give every seed once")
    files, known = [read_file(record_of(path)) for path in paths], read_reference(reference)
    notes = list(known.notes)
    if train:
        notes += overlap_note(of_structures(known.structures), of_structures(read_reference(train).structures), train)
    if task == "csp":
        rows = _requested(files) if requested else list(range(len(known)))
        judged = _predicted(files, known, metric, out, k, rows)
    else:
        rows = list(range(len(known)))
        judged = _generated(files, known, task, metric, out)
    judged["notes"] = list(dict.fromkeys([*notes, *judged["notes"]]))
    report = {
        "kldm": __version__,
        "task": task,
        "files": [str(path) for path in paths],
        "reference": {
            "name": known.name,
            "rows": len(rows),
            "failed": sum(known.structures[row] is None for row in rows),
            "whole": len(rows) == len(known) and not Path(reference).expanduser().exists(),
        },
        **judged,
        "libraries": library_versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(out / "report.json", report)
    return report


def _requested(files: Sequence[SampleFile]) -> list[int]:
    """The targets that the samples carry, in order."""
    for file in files:
        if not file.labelled:
            problem = "the file does not say which rows of the reference its samples answer"
            raise KldmError(problem, place=str(file.path), remedy="give every row a 'target', or leave --requested out")
    return sorted({one.target for file in files for one in file.candidates})


def _predicted(
    files: Sequence[SampleFile], reference: Reference, metric: Metric, out: Path, k: int | None, rows: Sequence[int]
) -> dict[str, Any]:
    """Crystal structure prediction: every sample at its row of the reference, of which ``rows`` are judged."""
    placed: Alignment = align(files, reference, len(rows))
    make_writable(out)
    kept = tuple(one for one in placed.candidates if k is None or one.candidate < k)
    left_out = len(placed.candidates) - len(kept)
    marks = left_out > 0 and any(one.selected for one in placed.candidates)
    if marks:
        kept = tuple(attrs.evolve(one, selected=False) for one in kept)
    samples = Samples(kept, reference.structures)
    measured = _at_rows(measure({"csp": metric}, _of_rows(samples, rows)), rows)
    lost = [{"target": None, "candidate": one.candidate, "name": "", "reason": one.reason} for one in placed.unplaced]
    write_rows(out / "results.csv", measured, samples, reference.ids, lost)
    judged = judgement(measured, samples)
    notes = [*placed.notes, *judged["notes"]]
    if len(rows) < len(reference):
        notes.append(f"{len(rows)} of {len(reference)} rows of the reference are judged, those that were asked for.")
    if left_out:
        notes.append(f"{left_out} samples beyond the first {k} of their target are left out.")
    if marks:
        notes.append("What the samples mark as selected was chosen among more candidates, and is not judged apart.")
    return {"alignment": placed.rule, "unplaced": len(placed.unplaced), **judged, "notes": notes}


def _of_rows(samples: Samples, rows: Sequence[int]) -> Samples:
    """Samples beside these rows of their reference alone, numbered from 0."""
    place = {row: number for number, row in enumerate(rows)}
    return Samples(
        tuple(attrs.evolve(one, target=place[one.target]) for one in samples.candidates),
        tuple(samples.reference[row] for row in rows),
    )


def _at_rows(measured: Mapping[str, Measurement], rows: Sequence[int]) -> dict[str, Measurement]:
    """The same measurements with the targets of their tables as they are in the whole reference."""
    return {
        name: attrs.evolve(found, rows=tuple({**row, "target": rows[row["target"]]} for row in found.rows))
        for name, found in measured.items()
    }


def _generated(
    files: Sequence[SampleFile], reference: Reference, task: Task, metric: Metric, out: Path
) -> dict[str, Any]:
    """De-novo generation: every file is a set of its own; of several, mean and population standard deviation."""
    make_writable(out)
    sets = [Samples(_renumbered(file, seed), reference.structures) for seed, file in enumerate(files)]
    found = [metric.measure(samples) for samples in sets]
    together = Measurement(
        _over_seeds([one.values for one in found]),
        tuple(row for one in found for row in one.rows),
        found[0].definition if len(found) == 1 else {"seeds": [one.definition for one in found]},
        tuple(dict.fromkeys(note for one in found for note in one.notes)),
    )
    samples = Samples(tuple(one for each in sets for one in each.candidates), reference.structures)
    measured: dict[str, Measurement] = {task: together}
    write_rows(out / "results.csv", measured, samples, [name for file in files for name in file.names])
    judged = judgement(measured, samples)
    if len(found) > 1:
        judged["seeds"] = [nested(one.values) for one in found]
    return judged


def _renumbered(file: SampleFile, seed: int) -> tuple[Candidate, ...]:
    """The samples of a file, numbered by their position; the file is the candidate's number."""
    return tuple(
        attrs.evolve(candidate, target=position, candidate=seed) for position, candidate in enumerate(file.candidates)
    )


def _over_seeds(seeds: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Of one seed its values; of several the means, with ``_std``, the population standard deviation (ddof = 0)."""
    if len(seeds) == 1:
        return dict(seeds[0])
    values: dict[str, float | None] = {}
    for name in seeds[0]:
        known = [value for seed in seeds if (value := seed[name]) is not None]
        values[name] = statistics.fmean(known) if known else None
        values[f"{name}_std"] = statistics.pstdev(known) if known else None
    return values
