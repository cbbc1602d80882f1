"""The one road from samples to a judgement: of a run's own samples as of files of any origin."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from kldm.errors import KldmError
from kldm.evaluation.report import Against, Finding, Judgement, terms_of
from kldm.evaluation.results import write_lines, write_table
from kldm.interfaces import Measurement, Metric, Samples
from kldm.reading import Reference
from kldm.runtime.files import make_writable


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
    """Measure sets of samples, write the per-structure table, and say what was found.

    Args:
        judges: by the names of their sections in the report.
        sets: of one set the values are reported; of several their means and, as ``<name>_std``, their population
            standard deviations (ddof = 0), with the values of each beside them.
        reference: what the samples are judged against, for the report; the structures are in the samples.
        table: the CSV file with one row per candidate and the columns of all metrics side by side; the same as JSON
            lines stands beside it.
        names: of the targets of each set, for the table.
        rows: the rows of the reference that are judged, where these are not all; the targets of the samples are
            positions among them.
        unplaced: rows for the table, of samples that answer nothing.
        notes: sentences that come before those of the metrics.
    """
    make_writable(table.parent)  # before the work of hours
    measured = {section: [_measured(judge, samples) for samples in sets] for section, judge in judges.items()}
    _write_rows(table, measured, sets, names, rows, unplaced)
    candidates = [one for samples in sets for one in samples.candidates]
    found = (note for parts in measured.values() for part in parts for note in part.notes)
    return Judgement(
        reference=None if reference is None else _against(reference, rows),
        requests=len(candidates),
        not_built=sum(one.structure is None for one in candidates),
        metrics={section: _finding(judges[section], parts) for section, parts in measured.items()},
        notes=tuple(dict.fromkeys([*notes, *found])),
    )


def _measured(judge: Judge, samples: Samples) -> Measurement:
    found = judge.metric.measure(samples)
    if found.rows and len(found.rows) != len(samples.candidates):
        problem = f"it returned {len(found.rows)} rows for {len(samples.candidates)} candidates"
        raise KldmError(
            problem, place=judge.name, remedy="return one for each candidate, failed ones included, or none"
        )
    return found


def _against(reference: Reference, rows: Sequence[int] | None) -> Against:
    judged = range(len(reference)) if rows is None else rows
    failed = sum(reference.structures[row] is None for row in judged)
    whole = reference.whole and len(judged) == len(reference)
    return Against(name=reference.name, rows=len(judged), failed=failed, whole=whole)


def _finding(judge: Judge, parts: Sequence[Measurement]) -> Finding:
    """Of several sets, the definition is what theirs have in common, beside each whole."""
    values, definition = parts[0].values, dict(parts[0].definition)
    if several := len(parts) > 1:
        values = _over_seeds([part.values for part in parts])
        common = {key: one for key, one in definition.items() if all(p.definition.get(key) == one for p in parts)}
        definition = {**common, "seeds": [part.definition for part in parts]}
    return Finding(
        metric=judge.name,
        terms=terms_of(judge.metric),
        values=values,
        definition=definition,
        seeds=tuple(part.values for part in parts) if several else (),
    )


def _over_seeds(seeds: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for name in dict.fromkeys(name for seed in seeds for name in seed):
        known = [value for seed in seeds if (value := seed.get(name)) is not None]
        values[name] = statistics.fmean(known) if known else None
        values[f"{name}_std"] = statistics.pstdev(known) if known else None
    return values


def _write_rows(
    path: Path,
    measured: Mapping[str, Sequence[Measurement]],
    sets: Sequence[Samples],
    names: Sequence[Sequence[str]],
    judged: Sequence[int] | None,
    unplaced: Sequence[Mapping[str, Any]],
) -> None:
    rows: list[Mapping[str, Any]] = []
    for number, (samples, known) in enumerate(zip(sets, names, strict=True)):
        for index, candidate in enumerate(samples.candidates):
            target = candidate.target if judged is None else judged[candidate.target]
            name = known[target] if target < len(known) else ""
            row: dict[str, Any] = {"target": target, "candidate": candidate.candidate, "name": name}
            for parts in measured.values():
                if parts[number].rows:
                    row |= {**parts[number].rows[index], "target": target}
            rows.append(row)
    rows += unplaced
    write_table(path, rows)
    write_lines(path.with_suffix(".jsonl"), rows)
