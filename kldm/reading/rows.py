"""What a file of structures holds: one row for each structure, whether it could be built or not."""

import gzip
import io
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import attrs

from kldm.data.formulas import reduced_formula
from kldm.errors import KldmError
from kldm.interfaces import Candidate

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure


@attrs.frozen(eq=False)
class Row:
    """One structure of a file.

    Attributes:
        place: file and line, frame or entry, for messages.
        structure: None where none could be built.
        reason: why there is none.
        target: row of the reference, where the file says it.
        candidate: number among the answers to the target, where the file says it.
        name: what the file calls it; may be empty.
        species: atomic numbers, where they are known although there is no structure.
        selected: whether the file marks it as the one chosen among the answers to its target.
    """

    place: str
    structure: "Structure | None"
    reason: str = ""
    target: int | None = None
    candidate: int | None = None
    name: str = ""
    species: tuple[int, ...] = ()
    selected: bool = False


@attrs.frozen(eq=False)
class SampleFile:
    """A file of structures as candidates.

    Attributes:
        path: the file or folder.
        candidates: one for each row, failures included, in the order of the file.
        places, names: of each candidate, see ``Row``.
        labelled: whether the rows say which target they answer; where they do not, a candidate's target is its
            position in the file.
    """

    path: Path
    candidates: tuple[Candidate, ...]
    places: tuple[str, ...]
    names: tuple[str, ...]
    labelled: bool


def numbered(path: Path, rows: Sequence[Row]) -> SampleFile:
    """Rows with a target and a candidate number each.

    A row without target gets its position, one without candidate number the number of rows before it that answer
    the same target.

    Raises:
        KldmError: there are no rows, or some have a target and others none.
    """
    if not rows:
        raise KldmError("it holds no structures", place=str(path), remedy="check that it is the file you mean")
    without = [row for row in rows if row.target is None]
    if 0 < len(without) < len(rows):
        raise KldmError(
            f"{len(rows) - len(without)} of {len(rows)} rows have a 'target', but this one has none",
            place=without[0].place,
            remedy="give it to every row or to none",
        )
    candidates, answers = [], dict[int, int]()
    for position, row in enumerate(rows):
        target = position if row.target is None else row.target
        number = answers.get(target, 0) if row.candidate is None else row.candidate
        answers[target] = answers.get(target, 0) + 1
        candidates.append(Candidate(target, number, row.structure, row.reason, row.species, row.selected))
    places, names = tuple(row.place for row in rows), tuple(row.name for row in rows)
    return SampleFile(path, tuple(candidates), places, names, labelled=not without)


def labels(record: Mapping[str, Any], place: str) -> tuple[int | None, int | None]:
    """``target`` and ``candidate`` of a record, None where it lacks them or holds null.

    Raises:
        KldmError: one of them is no whole number from 0.
    """
    target, candidate = (_whole(record.get(key), place) for key in ("target", "candidate"))
    return target, candidate


def chosen(record: Mapping[str, Any], place: str) -> bool:
    """``selected`` of a record, False where it lacks it or holds null.

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
    if not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0:
        return int(value)
    raise KldmError("'target' and 'candidate' must be whole numbers from 0", place=place)


def opened(path: Path) -> TextIO:
    """A text file, compressed by gzip or not. What is not UTF-8 becomes U+FFFD, so that it spoils its own row only."""
    packed = path.suffix.lower() == ".gz"
    return io.TextIOWrapper(gzip.GzipFile(path) if packed else path.open("rb"), encoding="utf-8-sig", errors="replace")


def refusal(error: Exception) -> str:
    """Why one structure could not be built, without measured numbers, so that reasons can be counted."""
    return f"structure cannot be built: {type(error).__name__}"


def formulas(structures: "Iterable[Structure | None]") -> tuple[str | None, ...]:
    """The reduced formula of each, oxidation states dropped; None where there is none."""
    return tuple(map(_formula, structures))


def _formula(structure: "Structure | None") -> str | None:
    try:
        return None if structure is None else reduced_formula(structure.composition.element_composition)
    except Exception:  # a composition without a formula answers no target
        return None
