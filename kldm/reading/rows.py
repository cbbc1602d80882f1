"""The content of a file of structures: one row for each structure, whether it could be built or not."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs

from kldm.data.formulas import reduced_formula
from kldm.data.published import NAMES
from kldm.errors import KldmError, printable
from kldm.interfaces import UNPLACED, Candidate

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

MOST_NOTES = 5
"""Most kinds of notes on the rows of one file that are told one by one."""


def one_line(text: str) -> str:
    """A text from a file in one line that can be printed, and no longer than a screen."""
    return printable(" ".join(text[:2000].split()))[:500]


def name_of(record: Mapping[str, Any]) -> str:
    """The name that a record or a frame carries under one of ``NAMES``; empty if there is none."""
    values = (record.get(key) for key in NAMES)
    whole = (int(value) if isinstance(value, float) and value.is_integer() else value for value in values)
    return next((str(value) for value in whole if isinstance(value, str | int) and not isinstance(value, bool)), "")


@attrs.frozen(eq=False)
class Row:
    """One structure of a file.

    Attributes:
        place: file and line, frame or entry, for messages.
        structure: None if it could not be built.
        reason: why there is no structure.
        target: row of the reference, if the file gives it.
        candidate: number among the candidates of the target, if the file gives it.
        name: its name in the file; may be empty.
        species: atomic numbers, if they are known although there is no structure.
        selected: whether the file marks it as selected among the candidates of its target.
        unread: whether the row failed because it could not be read, and not because the program that wrote the file
            had no structure.
        note: what a reader of the results must know about how it was read; may be empty.
    """

    place: str = attrs.field(converter=printable)
    structure: "Structure | None"
    reason: str = attrs.field(default="", converter=one_line)
    target: int | None = None
    candidate: int | None = None
    name: str = attrs.field(default="", converter=one_line)
    species: tuple[int, ...] = ()
    selected: bool = False
    unread: bool = False
    note: str = ""


@attrs.frozen(eq=False)
class SampleFile:
    """A file of structures as candidates.

    Attributes:
        path: the file or folder.
        candidates: one for each row, failures included, in the order of the file.
        places, names: place and name of each candidate, see ``Row``.
        labelled: whether the rows carry their target; otherwise a candidate's target is its position in the file. A
            failed row without one, among others that carry theirs, is ``UNPLACED``, with its position as number.
        notes: sentences that a reader of the results must see.
    """

    path: Path
    candidates: tuple[Candidate, ...]
    places: tuple[str, ...]
    names: tuple[str, ...]
    labelled: bool
    notes: tuple[str, ...] = ()


def numbered(path: Path, rows: Sequence[Row]) -> SampleFile:
    """The rows as candidates, each with a target and a candidate number.

    A missing target is the position of the row. A missing candidate number is the number of rows with the same target
    that come before.

    Raises:
        KldmError: there are no rows, none of them can be read, or only some of the structures have a target.
    """
    if not rows:
        raise KldmError("it holds no structures", place=str(path), remedy="check that it is the file you mean")
    if all(row.structure is None for row in rows) and any(row.unread for row in rows):
        reason, count = Counter(row.reason for row in rows if row.unread).most_common(1)[0]
        most = reason if count == len(rows) else f"{count} of them: {reason}"
        problem = f"none of its {len(rows)} structures can be read: {most}" if len(rows) > 1 else reason
        raise KldmError(problem, place=str(path), remedy="check that it is the file you mean")
    with_target = sum(row.target is not None for row in rows)
    without = next((row for row in rows if row.target is None and row.structure is not None), None)
    if with_target and without is not None:
        problem = f"{with_target} of {len(rows)} rows have a 'target', but this one has none"
        raise KldmError(problem, place=without.place, remedy="give it to every row or to none")
    candidates, counts = [], Counter[int]()
    for position, row in enumerate(rows):
        unplaced = UNPLACED if with_target else position
        target = unplaced if row.target is None else row.target
        number = position if target == UNPLACED else counts[target] if row.candidate is None else row.candidate
        counts[target] += 1
        candidates.append(Candidate(target, number, row.structure, row.reason, row.species, row.selected, row.place))
    places, names = tuple(row.place for row in rows), tuple(row.name for row in rows)
    return SampleFile(path, tuple(candidates), places, names, with_target > 0, _notes(path, rows))


def _notes(path: Path, rows: Sequence[Row]) -> tuple[str, ...]:
    """One sentence for each kind of note, and for each reason why rows cannot be read, with the number of the rows and
    the first of them."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        if text := f"they cannot be read: {row.reason}" if row.unread else row.note:
            kinds.setdefault(text, []).append(row)
    most = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    notes = [
        f"{path}: {len(noted)} of {len(rows)} structures: {note} (the first is {noted[0].place})."
        for note, noted in most[:MOST_NOTES]
    ]
    if rest := sum(len(noted) for _, noted in most[MOST_NOTES:]):
        notes.append(f"{path}: {rest} of {len(rows)} structures for other reasons, which stand in results.csv.")
    return tuple(notes)


def labels(record: Mapping[str, Any], place: str) -> tuple[int | None, int | None]:
    """``target`` and ``candidate`` of a record; None if they are missing or null.

    Raises:
        KldmError: one of them is not a whole number from 0.
    """
    target, candidate = (_whole(record.get(key), place) for key in ("target", "candidate"))
    return target, candidate


def is_selected(record: Mapping[str, Any], place: str) -> bool:
    """``selected`` of a record; False if it is missing or null.

    Raises:
        KldmError: it is neither true nor false.
    """
    value = record.get("selected")
    if value is None or isinstance(value, bool):
        return bool(value)
    raise KldmError("'selected' must be true or false", place=place)


def _whole(value: object, place: str) -> int | None:
    if value is None:
        return None
    is_whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    if not isinstance(value, bool) and is_whole and int(cast(int, value)) >= 0:
        return int(cast(int, value))
    remedy = "rename it if it is a property, and leave it out where it is not known"
    raise KldmError("'target' and 'candidate' must be whole numbers from 0", place=place, remedy=remedy)


def formulas(structures: "Iterable[Structure | None]") -> tuple[str | None, ...]:
    """The reduced formula of each structure, without oxidation states; None if there is none."""
    return tuple(map(_formula, structures))


def _formula(structure: "Structure | None") -> str | None:
    try:
        return None if structure is None else reduced_formula(structure.composition.element_composition)
    except Exception:  # a composition without a formula answers no target
        return None
