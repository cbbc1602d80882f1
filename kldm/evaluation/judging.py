"""Samples judged by metrics, and what a report says of it: the same for runs and for files of any origin."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kldm.crystals import CrystalStore
from kldm.evaluation.results import write_table
from kldm.interfaces import Measurement, Metric, Samples
from kldm.runtime.files import atomic_write

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

RESERVED = ("reference", "requests", "not_built", "definitions", "notes", "seconds")
"""Keys of a judgement beside the metrics' names."""


def measure(metrics: Mapping[str, Metric], samples: Samples) -> dict[str, Measurement]:
    """Every metric on the same samples."""
    return {name: metric.measure(samples) for name, metric in metrics.items()}


def judgement(measured: Mapping[str, Measurement], samples: Samples) -> dict[str, Any]:
    """The part of a report that belongs to one set of samples: values by metric, and what is behind them.

    A value's dotted name becomes a path: ``structural.match_rate@1`` of the metric ``csp`` is found at
    ``csp.structural["match_rate@1"]``.
    """
    return {
        "requests": len(samples.candidates),
        "not_built": sum(candidate.structure is None for candidate in samples.candidates),
        **{name: nested(found.values) for name, found in measured.items()},
        "definitions": {name: found.definition for name, found in measured.items()},
        "notes": list(dict.fromkeys(note for found in measured.values() for note in found.notes)),
    }


def parts(name: str) -> list[str]:
    """The parts of a dotted name: ``full``, ``share_below_0.1@1``. A dot before a digit is that of a number."""
    return re.split(r"\.(?!\d)", name)


def nested(values: Mapping[str, float | None]) -> dict[str, Any]:
    """Dotted names as paths."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *path, last = parts(name)
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = value
    return tree


def flat(tree: Mapping[str, Any], place: str = "") -> dict[str, float | None]:
    """Paths as dotted names: the inverse of ``nested``."""
    found: dict[str, float | None] = {}
    for name, value in tree.items():
        found |= flat(value, f"{place}{name}.") if isinstance(value, Mapping) else {place + name: value}
    return found


def number(name: str, value: float) -> str:
    """A value as text: a count (``n_failed``) without decimals, any other with four."""
    count = name.rpartition(".")[2].startswith("n_") and value == int(value)
    return f"{value:.0f}" if count else f"{value:.4f}"


def write_rows(
    path: Path,
    measured: Mapping[str, Measurement],
    samples: Samples,
    names: Sequence[str],
    more: Sequence[Mapping[str, Any]] = (),
) -> None:
    """The per-structure table as CSV, and beside it as JSON lines: one row per candidate, the columns of all metrics
    side by side, then the rows ``more``."""
    rows: list[Mapping[str, Any]] = []
    for index, candidate in enumerate(samples.candidates):
        row: dict[str, Any] = {"target": candidate.target, "candidate": candidate.candidate}
        row["name"] = names[candidate.target] if candidate.target < len(names) else ""
        for found in measured.values():
            if found.rows:
                row |= found.rows[index]
        rows.append(row)
    rows += more
    write_table(path, rows)
    with atomic_write(path.with_suffix(".jsonl")) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def reference_structures(store: CrystalStore) -> tuple["Structure", ...]:
    """The crystals of a data set as structures, to judge samples against."""
    from kldm.data.convert import to_structures

    return tuple(to_structures(store))


def table(judged: Mapping[str, Any]) -> str:
    """Judgements as a small table: one row per value, one column per set of samples."""
    labels = list(judged)
    rows: dict[str, list[str]] = {
        "reference": [str(judged[label]["reference"]["rows"]) for label in labels],
        "requests": [str(judged[label]["requests"]) for label in labels],
        "not built": [str(judged[label]["not_built"]) for label in labels],
    }
    notes: dict[str, None] = {}
    for column, label in enumerate(labels):
        notes.update(dict.fromkeys(judged[label]["notes"]))
        for metric in judged[label]["definitions"]:
            for key, value in flat(judged[label][metric], f"{metric}.").items():
                cells = rows.setdefault(key, ["-"] * len(labels))
                cells[column] = "none" if value is None else number(key, value)
    lines = [["", *labels], *([name, *cells] for name, cells in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(labels) + 1)]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    text.insert(1, "-" * len(text[0]))
    return "\n".join([*text, *(f"note: {note}" for note in notes)])
