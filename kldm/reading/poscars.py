"""POSCAR texts to structures. Elements that the file does not name are not guessed."""

import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kldm.data.structures import StructureError, atomic_numbers, plain_structure

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

_NAME = re.compile(r"(?:poscar|contcar).*|.*\.(?:vasp|poscar)", re.IGNORECASE)
_NUMBERS = re.compile(r"\s*(?:[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[ed][-+]?\d+)?(?:\s+|$))+", re.ASCII | re.IGNORECASE)
_VELOCITIES = re.compile(r"\s*(?:direct|cartesian|lattice velocities.*)?\s*", re.IGNORECASE)

MOST_SYMBOL_LINES = 10
"""Lines over which VASP spreads the symbols of many groups of atoms."""


def is_poscar(name: str) -> bool:
    """Whether a file is called as POSCARs are."""
    return _NAME.fullmatch(name) is not None


def poscars(text: str) -> list[str]:
    """The structures of a text that holds one POSCAR or several, one after the other.

    Blank lines and numbers that follow the sites, such as velocities, belong to the structure before. What is neither
    begins the next one.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    result, first = [], 0
    while first < len(lines):
        last = _end(lines, first)
        if last < len(lines) and _VELOCITIES.fullmatch(lines[last]):
            last += 1
            while last < len(lines) and (not lines[last].strip() or _NUMBERS.fullmatch(lines[last])):
                last += 1
        elif last < len(lines) and _NUMBERS.fullmatch(lines[last]):
            last = len(lines)  # more sites than it counts, which the reader of the piece tells
        result.append("\n".join(lines[first:last]))
        first = last
    return result


def _end(lines: Sequence[str], first: int) -> int:
    """The line after the sites of the structure that begins at a line; after the last one if it is no POSCAR."""
    _, counts, line = _header(lines, first)
    if not counts or line >= len(lines):
        return len(lines)
    line += 2 if lines[line].strip()[:1] in ("s", "S") else 1
    return min(line + sum(counts), len(lines))


def _header(lines: Sequence[str], first: int) -> tuple[list[str], list[int], int]:
    """Symbols and numbers of atoms, and the line after them; no numbers if they cannot be found."""
    symbols: list[str] = []
    line = first + 5
    while line < min(len(lines), first + 5 + MOST_SYMBOL_LINES) and lines[line].split():
        words = lines[line].split()
        if words[0].isdecimal():
            break
        symbols += words
        line += 1
    rows = max(line - first - 5, 1)
    words = " ".join(lines[line : line + rows]).split()
    counts = [int(word) for word in words if word.isdecimal() and len(word) < 7]
    return symbols, counts if len(counts) == len(words) else [], line + rows


def read_poscar_text(text: str) -> "Structure":
    """The structure of a POSCAR, without its velocities.

    Raises:
        StructureError: it is none, does not name its elements, or is no crystal.
    """
    from pymatgen.core.periodic_table import Element
    from pymatgen.io.vasp.inputs import Poscar

    lines = text.split("\n")
    symbols, counts, _ = _header(lines, 0)
    if symbols and len(symbols) != len(counts):
        raise StructureError("it is no POSCAR, or its symbols and numbers of atoms do not agree")
    for symbol in symbols:
        if not Element.is_valid_symbol(re.split("[/_]", symbol)[0]):
            raise StructureError(f"{symbol[:20]!r} is no element")
    end = _end(lines, 0)
    if end < len(lines) and _NUMBERS.fullmatch(lines[end]):
        raise StructureError("it lists more sites than its numbers of atoms say")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            structure = Poscar.from_str(text, read_velocities=False).structure
    except IndexError:
        raise StructureError("it is no POSCAR, or is cut short") from None
    except Exception as error:  # the parser may raise anything; the failure is this structure's
        detail = " ".join(str(error).split())[:100]
        raise StructureError(f"it is no POSCAR that can be read ({detail or type(error).__name__})") from None
    messages = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    guessed = [message for message in messages if "selective dynamics" not in message.lower()]
    if guessed:
        raise StructureError(guessed[0].split(". ")[0][:120])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of divisions by the length of a cell vector that is zero
        return plain_structure(structure.lattice.matrix, atomic_numbers(structure), structure.frac_coords)
