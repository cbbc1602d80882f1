"""Judges sets of samples by metrics, whether they are samples of a run or files of any program."""

import statistics
import sys
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from kldm.errors import KldmError
from kldm.evaluation.report import Finding, JudgedReference, Judgement, terms_of
from kldm.evaluation.results import write_lines, write_table
from kldm.interfaces import Measurement, Metric, Samples
from kldm.reading import Reference
from kldm.runtime.files import make_writable
from kldm.runtime.pool import is_of_a_limit

EVALUATION = "evaluation"
"""What the folders of ``kldm evaluate`` are called before their number."""

RESULTS = ("report.json", "results.csv", "results.jsonl")
"""The files of an evaluation of files."""


@attrs.frozen(eq=False)
class Judge:
    """A metric and its registered name."""

    name: str
    metric: Metric


def judge(
    judges: Mapping[str, Judge],
    sets: Sequence[Samples],
    reference: Reference | None,
    *,
    table: Path,
    names: Sequence[Sequence[str]],
    rows: Sequence[int] | None = None,
    unplaced: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> Judgement:
    """Measure sets of samples, write the table of all structures, and return the judgement.

    Args:
        judges: the metrics, by the names of their sections in the report.
        sets: sets of samples. For one set its values are reported. For several sets the means are reported and, as
            ``<name>_std``, the population standard deviations (ddof = 0), together with the values of each set.
        reference: the reference, for the report; the samples already hold its structures.
        table: the CSV file to write, with one row per candidate and the columns of all metrics. The same rows are
            written beside it as JSON lines.
        names: names of the targets of each set, for the table.
        rows: the rows of the reference that are judged, if not all are; the targets of the samples are then positions
            in ``rows``.
        unplaced: further rows of the table, for samples that answer no row of the reference.
        notes: sentences that come before those of the metrics.
    """
    make_writable(table.parent)  # fails now rather than after hours of measuring
    measured = {section: [_measured(judge, samples) for samples in sets] for section, judge in judges.items()}
    table_rows = _rows(measured, sets, names, rows)
    for path, write in ((table, write_table), (table.with_suffix(".jsonl"), write_lines)):
        write(path, [*table_rows, *unplaced])
    candidates = [candidate for samples in sets for candidate in samples.candidates]
    not_built = [candidate.reason for candidate in candidates if candidate.structure is None]
    unmeasured = (
        [reason for pair in zip(sets, measurements, strict=True) for reason in _failures(*pair)]
        for measurements in measured.values()
    )
    failures = (failure(len(candidates), Counter(reasons)) for reasons in (not_built, *unmeasured))
    found = (note for measurements in measured.values() for part in measurements for note in part.notes)
    return Judgement(
        reference=None if reference is None else _judged_reference(reference, rows),
        requests=len(candidates),
        not_built=len(not_built),
        metrics={section: _finding(judges[section], measurements) for section, measurements in measured.items()},
        notes=tuple(dict.fromkeys([*notes, *found])),
        failure=next(filter(None, failures), None),
    )


def failure(requests: int, failures: Mapping[str, int]) -> str | None:
    """A sentence if all requests failed, with the most common reason; None if one succeeded, or nothing was asked for.

    Args:
        failures: number of failed requests by reason.
    """
    if not requests or sum(failures.values()) < requests:
        return None
    reason, count = Counter(failures).most_common(1)[0]
    return f"all {requests} structures failed" + ("" if count == requests else f", {count} of them") + f": {reason}"


def _failures(samples: Samples, measurement: Measurement) -> list[str]:
    """The reasons of the candidates of which the metric could say nothing."""
    everyone = measurement.values.get("n_failed") == len(measurement.rows)
    reasons = [str(row.get("reason")) for row in measurement.rows]
    pairs = zip(samples.candidates, reasons, strict=False)  # a metric may have no rows
    return [reason for candidate, reason in pairs if everyone or candidate.structure is None or is_of_a_limit(reason)]


def _line(error: Exception, kind: type) -> str:
    """The last line of the class's own module that the error came through, as ``mine.py:12``."""
    frames, file = (
        traceback.extract_tb(error.__traceback__),
        getattr(sys.modules.get(kind.__module__), "__file__", None),
    )
    own = [frame for frame in frames if frame.filename == file]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _measured(judge: Judge, samples: Samples) -> Measurement:
    try:
        measurement = judge.metric.measure(samples)
    except (KldmError, MemoryError):
        raise
    except Exception as error:  # of a metric of somebody's own
        problem = f"it failed at {_line(error, type(judge.metric))}: {type(error).__name__}: {error}"
        remedy = "a metric has to judge every structure, broken ones too: kldm.testing.check_metric tries it on some"
        raise KldmError(problem, place=judge.name, remedy=remedy) from error
    if measurement.rows and len(measurement.rows) != len(samples.candidates):
        problem = f"it returned {len(measurement.rows)} rows for {len(samples.candidates)} candidates"
        raise KldmError(
            problem, place=judge.name, remedy="return one for each candidate, failed ones included, or none"
        )
    return measurement


def _judged_reference(reference: Reference, rows: Sequence[int] | None) -> JudgedReference:
    judged = range(len(reference)) if rows is None else rows
    failed = sum(reference.structures[row] is None for row in judged)
    whole = reference.whole and len(judged) == len(reference)
    return JudgedReference(name=reference.name, rows=len(judged), failed=failed, whole=whole)


def _finding(judge: Judge, measurements: Sequence[Measurement]) -> Finding:
    """For several sets, the definition holds what all of theirs agree on, and each of them whole under ``seeds``."""
    values, definition = measurements[0].values, dict(measurements[0].definition)
    if several := len(measurements) > 1:
        values = _over_seeds([part.values for part in measurements])
        definition = {
            key: value
            for key, value in definition.items()
            if all(part.definition.get(key) == value for part in measurements)
        }
        definition["seeds"] = [part.definition for part in measurements]
    return Finding(
        metric=judge.name,
        terms=terms_of(judge.metric),
        values=values,
        definition=definition,
        seeds=tuple(part.values for part in measurements) if several else (),
    )


def _over_seeds(seeds: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Means and standard deviations over the seeds that have the value."""
    values: dict[str, float | None] = {}
    for name in dict.fromkeys(name for seed in seeds for name in seed):
        known = [value for seed in seeds if (value := seed.get(name)) is not None]
        values[name] = statistics.fmean(known) if known else None
        values[f"{name}_std"] = statistics.pstdev(known) if known else None
    return values


def _rows(
    measured: Mapping[str, Sequence[Measurement]],
    sets: Sequence[Samples],
    names: Sequence[Sequence[str]],
    judged: Sequence[int] | None,
) -> list[Mapping[str, Any]]:
    """The rows of all metrics side by side."""
    rows: list[Mapping[str, Any]] = []
    for number, (samples, target_names) in enumerate(zip(sets, names, strict=True)):
        for index, candidate in enumerate(samples.candidates):
            target = candidate.target if judged is None else judged[candidate.target]
            name = target_names[target] if target < len(target_names) else ""
            row: dict[str, Any] = {"target": target, "candidate": candidate.candidate, "name": name}
            for measurements in measured.values():
                if measurements[number].rows:
                    row |= {**measurements[number].rows[index], "target": target}
            rows.append(row | ({"source": candidate.source} if candidate.source else {}))
    return rows
