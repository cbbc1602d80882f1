"""Extended xyz files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from tqdm import tqdm

from kldm.data.structures import Impossible, atomic_number, periodicity_note, plain_structure
from kldm.errors import KldmError
from kldm.reading.rows import NAMES, Row, is_selected, labels, open_text
from kldm.runtime.numbers import Float

_HEAD = re.compile(r"\b(Lattice|Properties)\s*=")
"""What tells the second line of a frame of extended xyz from any other line."""

_PAIR = re.compile(r"""(?<![^\s"'])([^\s="']++)\s*+=\s*+("[^"]*"|'[^']*'|\{[^{}=]*\}|\[[^=]*\](?=\s|$)|[^\s"']+)""")
_COLUMN = re.compile(r"(.+?):([RISL]):(\d{1,3})(?::|$)")
_COUNT = re.compile(r"\s*\d{1,9}\s*", re.ASCII)

_TEXT_AS_TARGET = "its 'target' is a text and no row of a reference, and is left out"


def read_frames(path: Path) -> Sequence[Row]:
    """Every frame of an extended xyz file. Only cell, periodicity, elements, positions, labels and names are read; what
    else a frame holds may be in any form. A frame that cannot be read fails alone.

    Raises:
        KldmError: it is no such file, or the frames after a broken one cannot be told apart.
    """
    with open_text(path) as file:
        lines = [line.rstrip("\n") for line in file]
    frames = tqdm(_frames(lines, path), desc=f"reading {path.name}", unit="frame", delay=2, disable=None)
    return [_row(frame, f"{path}, frame {number}") for number, frame in enumerate(frames)]


@attrs.frozen
class _Frame:
    """The second line of a frame and the lines of its atoms, or what is wrong with them."""

    head: str
    atoms: Sequence[str] = ()
    problem: str = ""


def _frames(lines: Sequence[str], path: Path) -> Iterator[_Frame]:
    """The frames by the counts in their first lines. A line that can only be the second of a frame of extended xyz
    shows where one begins, even if the counts before it are wrong."""
    starts: list[int] = []
    for row, line in enumerate(lines):
        if row and _HEAD.search(line):
            last = lines[starts[-1]] if starts else ""
            whole = _COUNT.fullmatch(last) is not None and starts[-1] + 2 + int(last) == row
            # Without its count, the line before is the last atom of the frame before.
            starts.append(row if whole and not _COUNT.fullmatch(lines[row - 1]) else row - 1)
    begin = next((row for row, line in enumerate(lines) if line.strip()), len(lines))
    starts = starts if starts and starts[0] <= begin else [begin, *starts]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield from _between(lines, start, end, path)


def _between(lines: Sequence[str], row: int, end: int, path: Path) -> Iterator[_Frame]:
    """The frames from a row that is the first of one until that of another."""
    frames: list[_Frame] = []
    while (row := next((n for n in range(row, end) if lines[n].strip()), end)) < end and _COUNT.fullmatch(lines[row]):
        count = int(lines[row])
        head, atoms = "".join(lines[row + 1 : row + 2]), lines[row + 2 : min(row + 2 + count, end)]
        whole = len(atoms) == count and all(line.strip() for line in atoms)
        frames.append(_Frame(head, atoms) if whole else _Frame(head, (), "it has fewer lines than atoms"))
        row += 2 + count
    if row < end and not frames and _HEAD.search(lines[row]):
        frames = [_Frame(lines[row], (), "the number of its atoms is missing")]
    elif row < end and not frames:
        head = "".join(lines[row + 1 : row + 2])
        problem = f"{lines[row].strip()[:40]!r} is no number of atoms"
        if not _HEAD.search(head):
            place, remedy = f"{path}:{row + 1}", "check that it is the file you mean"
            raise KldmError(f"not an extended xyz file ({problem})", place=place, remedy=remedy)
        frames = [_Frame(head, (), problem)]
    elif row < end:
        if any(_COUNT.fullmatch(line) for line in lines[row:end]):
            problem = "there are more lines than atoms, so that the frames after them cannot be told apart"
            raise KldmError(problem, place=f"{path}:{row + 1}", remedy="correct the number of atoms before them")
        frames[-1] = _Frame(frames[-1].head, (), "it has more lines than atoms")
    yield from frames


def _row(frame: _Frame, place: str) -> Row:
    pairs: dict[str, str] = {key: value.strip("\"'") for key, value in _PAIR.findall(frame.head)}
    record: dict[str, Any] = {key: _number_or_text(pairs[key]) for key in ("target", "candidate") if key in pairs}
    note = _TEXT_AS_TARGET if isinstance(record.get("target"), str) else ""
    target, candidate = labels({} if note else record, place)
    name = next((pairs[key] for key in NAMES if key in pairs), "")
    selected = is_selected({"selected": _LOGICAL.get(pairs["selected"], "")} if "selected" in pairs else {}, place)
    row = Row(place, None, "", target, candidate, name, selected=selected, note=note)
    species: tuple[int, ...] = ()
    try:
        if frame.problem:
            raise ValueError(frame.problem)
        element, position, width = _columns(pairs.get("Properties", "species:S:1:pos:R:3"))
        words = [line.split() for line in frame.atoms]
        if any(len(line) < width for line in words):
            raise ValueError("the line of an atom is cut short")
        species = tuple(atomic_number(line[element]) for line in words)
        if "Lattice" not in pairs:
            raise ValueError("there is no cell (its second line has no Lattice)")
        matrix = _floats(re.split(r"[\s,\[\]{}]+", pairs["Lattice"].strip("[]{} ")))
        if len(matrix) != 9:
            raise ValueError("its Lattice has not 9 numbers")
        positions = np.array([_floats(line[position : position + 3]) for line in words]).reshape(-1, 3)
        matrix = matrix.reshape(3, 3)
        structure = plain_structure(matrix, species, _fractional(positions, matrix))
    except ValueError as error:
        return attrs.evolve(row, reason=str(error), species=species, unread=not isinstance(error, Impossible))
    pbc = [_LOGICAL.get(word, True) for word in re.findall(r"\w+", pairs.get("pbc", ""))]
    return attrs.evolve(row, structure=structure, note=note or periodicity_note(pbc))


_LOGICAL: Mapping[str, bool] = {"T": True, "True": True, "true": True, "F": False, "False": False, "false": False}


def _number_or_text(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _columns(properties: str) -> tuple[int, int, int]:
    """The columns of elements and of positions, and how many columns must be there."""
    places, width = dict[str, int](), 0
    for name, _, count in _COLUMN.findall(properties[:2000]):
        places[name] = width
        width += int(count)
    element = next((places[name] for name in ("species", "Z", "numbers") if name in places), None)
    position = places.get("pos")
    if element is None or position is None:
        raise ValueError(f"it has no columns of species and pos (found: {', '.join(places) or 'none'})")
    return element, position, max(element + 1, position + 3)


def _floats(words: Sequence[str]) -> Float:
    """Numbers, whose exponents may be Fortran's."""
    try:
        return np.array([float(word.replace("D", "e").replace("d", "e")) for word in words])
    except ValueError as error:
        raise ValueError(f"{str(error).removeprefix('could not convert string to float: ')} is no number") from None


def _fractional(positions: Float, matrix: Float) -> Float:
    try:
        with np.errstate(all="ignore"):  # what is not finite is told by the reason
            return np.asarray(positions @ np.linalg.inv(matrix))
    except np.linalg.LinAlgError:
        raise Impossible("the cell is flat or impossible") from None
