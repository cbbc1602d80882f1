"""Values as tables of text for the terminal."""

import re
from collections.abc import Mapping, Sequence

from kldm.errors import printable
from kldm.evaluation.report import Judgement


def parts(name: str) -> list[str]:
    """The parts of a dotted name: ``full``, ``share_below_0.1@1``. A dot before a digit belongs to a number."""
    return re.split(r"\.(?!\d)", name)


def number(name: str, value: float | None) -> str:
    """A value as text: a count (``n_failed``) without decimals, any other value with four decimals."""
    if value is None:
        return "none"
    count = parts(name)[-1].startswith("n_") and value == int(value)
    return f"{value:.0f}" if count else f"{value:.4f}"


def text_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a table. The first line is the heading, and the first column is aligned to the left."""
    lines = [[printable(cell) for cell in line] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *text[1:]])


def judgements_table(judgements: Mapping[str, Judgement]) -> str:
    """One row per value, one column per set of samples, and the notes."""
    sets = judgements.values()
    lines = [
        ["", *judgements],
        ["reference", *("none" if judged.reference is None else str(judged.reference.rows) for judged in sets)],
        ["requests", *(str(judged.requests) for judged in sets)],
        ["not built", *(str(judged.not_built) for judged in sets)],
    ]
    names = dict.fromkeys(
        (section, name) for judged in sets for section, finding in judged.metrics.items() for name in finding.values
    )
    for section, name in names:
        findings = (judged.metrics.get(section) for judged in sets)
        cells = [
            number(name, finding.values[name]) if finding and name in finding.values else "-" for finding in findings
        ]
        lines.append([f"{section}.{name}", *cells])
    notes = dict.fromkeys(note for judged in sets for note in judged.notes)
    return "\n".join([text_table(lines), *(f"note: {printable(note)}" for note in notes)])
