"""Values as text for the terminal."""

import re
from collections.abc import Mapping, Sequence

from kldm.evaluation.report import Judgement


def parts(name: str) -> list[str]:
    """The parts of a dotted name: ``full``, ``share_below_0.1@1``. A dot before a digit is that of a number."""
    return re.split(r"\.(?!\d)", name)


def number(name: str, value: float | None) -> str:
    """A value as text: a count (``n_failed``) without decimals, any other with four."""
    if value is None:
        return "none"
    count = parts(name)[-1].startswith("n_") and value == int(value)
    return f"{value:.0f}" if count else f"{value:.4f}"


def text_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells in columns, the first line as heading; the first column is aligned to the left."""
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
        ["reference", *("none" if one.reference is None else str(one.reference.rows) for one in sets)],
        ["requests", *(str(one.requests) for one in sets)],
        ["not built", *(str(one.not_built) for one in sets)],
    ]
    names = dict.fromkeys(
        (section, name) for one in sets for section, found in one.metrics.items() for name in found.values
    )
    for section, name in names:
        cells = [
            number(name, found.values[name]) if (found := one.metrics.get(section)) and name in found.values else "-"
            for one in sets
        ]
        lines.append([f"{section}.{name}", *cells])
    notes = dict.fromkeys(note for one in sets for note in one.notes)
    return "\n".join([text_table(lines), *(f"note: {note}" for note in notes)])
