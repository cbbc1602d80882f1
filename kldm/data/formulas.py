"""Chemical formulas to the atoms of a cell, and back."""

import re
import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import gcd, lcm
from typing import TYPE_CHECKING, TypeVar

import attrs

from kldm.data.arrays import LAST_SPECIES
from kldm.errors import KldmError

if TYPE_CHECKING:
    from pymatgen.core.composition import Composition

K = TypeVar("K")

LARGEST_CELL = 500


@attrs.frozen
class Cell:
    """The atomic numbers of the atoms in one cell, and the formula that it was made from."""

    name: str
    numbers: tuple[int, ...]


def reduced_formula(composition: "Composition") -> str:
    """pymatgen's reduced formula, without its warning about elements that have no electronegativity to sort by.

    Raises:
        Exception: of any kind; pymatgen has no formula for the composition.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return str(composition.reduced_formula)


def reduced_counts(counts: Mapping[K, int]) -> dict[K, int]:
    """Counts divided by their greatest common divisor, in their order. (pymatgen makes O2 of O instead.)"""
    divisor = gcd(*counts.values())
    return {key: count // divisor for key, count in counts.items()}


def number_range(text: str) -> range:
    """The numbers of ``N`` or ``N-M``, M included. The range is empty if the text is neither, or N is 0."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    return range(first, last + 1) if first else range(0)


def cells(formulas: Sequence[str], units: str | None = None, option: str = "--formula") -> tuple[Cell, ...]:
    """The cells that the formulas describe.

    Args:
        formulas: each is the exact content of one cell, such as ``Na2Cl2``.
        units: ``N`` or ``N-M`` formula units: the formulas are reduced first, and each number gives one cell.
        option: the option that the formulas come from, for messages.

    Raises:
        KldmError: a text is not a formula, has a fractional count or an element beyond Z = 100, or a cell has more
            than 500 atoms.
    """
    result = []
    for formula in formulas:
        place = f"{option} {formula if len(formula) <= 80 else formula[:77] + '...'}"
        numbers = _atoms_of(formula, place)
        if max(numbers) > LAST_SPECIES:
            raise KldmError(f"it has an element beyond atomic number {LAST_SPECIES}", place=place)
        counts = numbers if units is None else reduced_counts(numbers)
        for factor in _factors(units):
            if (total := factor * sum(counts.values())) > LARGEST_CELL:
                raise _too_many(place, total)
            atoms = tuple(number for number, count in counts.items() for _ in range(count * factor))
            result.append(Cell(formula if units is None else f"{formula} x {factor}", atoms))
    return tuple(result)


_MOST = 10**6
"""Atoms in a formula, before it is reduced to its unit."""

_TOKEN = re.compile(r"([A-Z][a-z]*)|([(\[{])|([)\]}])|(\d+(?:\.\d+)?|\.\d+)", re.ASCII)
_SUBSCRIPTS = str.maketrans("\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089", "0123456789")
_DOTS = r"[*\u00b7\u2022\u2219\u22c5\u2027\u30fb\uff65]"
_MOLECULE = r"(0?\.\d+|\d*)((?:[A-Z][a-z]*\d*|\([A-Za-z0-9]+\)\d*)+)"
_HYDRATE = re.compile(rf"{_DOTS}|\.(?=(?:0?\.\d+|\d*)\(?(?:[HDT]2O|NH3)|[A-Za-z(\[{{])")
"""The dot of a hydrate. A full stop before digits is a decimal point unless water or ammonia follows the digits."""

_ADDUCT = re.compile(rf"(?:{_DOTS}|(?<![A-Za-z]0)\.){_MOLECULE}")
"""What follows such a dot in a formula that has one: how many molecules, and which."""

_FRACTION = re.compile(r"\.0*[1-9]")
"""A count that is not whole. Those of the elements may be whole all the same: CaO.5SiO2, twice, would be CaOSi2O4."""

_OXIDATION = re.compile(r"\([IVX]+\)|II")
"""An oxidation state in Roman numerals, which would be read as iodine and vanadium."""


def _atoms_of(formula: str, place: str) -> dict[int, int]:
    """The number of atoms by atomic number, D and T as H. All numbers of the text are whole and at least 1.

    Raises:
        KldmError: it is no such formula; the remedy says how it is written, where that can be told.
    """
    text = "".join(formula.split()).translate(_SUBSCRIPTS)
    if _OXIDATION.search(text):
        remedy = "leave oxidation states out, and write I2 for two atoms of iodine"
        raise KldmError("a Roman numeral is no element", place=place, remedy=remedy)
    if _HYDRATE.search(text):
        units = re.sub(r"^(\d+)(.*)", r"(\2)\1", _ADDUCT.sub(r"(\2)\1", text))
        units = re.sub(r"\((\([A-Za-z0-9]+\))\)", r"\1", units)
        remedy = f"write {units}, or so many of these units as the cell shall hold"
        remedy = remedy if units != text else "put molecules into brackets, with their number, as in CuSO4(H2O)5"
        raise KldmError("the dot of a hydrate can be read in several ways", place=place, remedy=remedy)
    amounts = _amounts(text, place)
    if _FRACTION.search(text):
        least = lcm(*(amount.denominator for amount in amounts.values()))
        whole = reduced_counts({symbol: int(amount * least) for symbol, amount in amounts.items()})
        unit = "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in whole.items())
        fits = sum(whole.values()) <= LARGEST_CELL
        remedy = f"write {unit}, or a multiple of it" if fits else "multiply them until they are whole"
        remedy += "; if a dot joins two formulas, put the second into brackets, as in CuSO4(H2O)5"
        raise KldmError("wants whole numbers of atoms", place=place, remedy=remedy)
    counts: dict[int, int] = {}
    for symbol, amount in amounts.items():
        number = _atomic_number(symbol, place)
        counts[number] = counts.get(number, 0) + int(amount)
    return counts


def _amounts(text: str, place: str) -> "dict[str, Fraction]":
    """The number of atoms by symbol. Brackets are kept on a stack, so that no depth of them is too much."""
    levels: list[dict[str, Fraction]] = [{}]
    last: dict[str, Fraction] | None = None  # what a number that follows would multiply
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or (match[3] and len(levels) == 1) or (match[4] and last is None):
            raise KldmError("not a chemical formula", place=place, remedy=_formula_remedy(text, position))
        position = match.end()
        if match[4]:
            factor = Fraction(match[4]) if len(match[4]) < 20 else Fraction(_MOST + 1)
            if not factor:
                raise KldmError("an element has the count 0", place=place, remedy="leave it out")
            last = {symbol: amount * factor for symbol, amount in (last or {}).items()}
        if last is not None:
            for symbol, amount in last.items():
                levels[-1][symbol] = levels[-1].get(symbol, Fraction(0)) + amount
                if levels[-1][symbol] > _MOST:
                    raise _too_many(place)
        last = {match[1]: Fraction(1)} if match[1] else levels.pop() if match[3] else None
        if match[2]:
            levels.append({})
    for symbol, amount in (last or {}).items():
        levels[-1][symbol] = levels[-1].get(symbol, Fraction(0)) + amount
    if len(levels) > 1 or not levels[0]:
        remedy = "close every bracket" if len(levels) > 1 else "write it like LiFePO4"
        raise KldmError("not a chemical formula", place=place, remedy=remedy)
    return levels[0]


def _formula_remedy(text: str, position: int) -> str:
    """How a text whose character at ``position`` has no meaning there is mended."""
    rest = text[position:]
    if rest[0] in "+-\u207a\u207b\u00b2\u00b3\u00b9\u2070" or "\u2074" <= rest[0] <= "\u2079":
        return "leave charges and isotopes out, and write whole numbers of atoms, as in SrTiO3"
    if position == 0 and rest[0].isascii() and rest[0].isdigit():
        return "write the number of units behind brackets, as in (H2O)2"
    if rest[0].isascii() and rest[0].islower():
        return "element symbols begin with a capital letter, as in LiFePO4"
    if rest[0] in ")]}":
        return "open every bracket"
    return "write it like LiFePO4"


def _atomic_number(symbol: str, place: str) -> int:
    from pymatgen.core.periodic_table import Element

    if not Element.is_valid_symbol(symbol):
        raise KldmError("not a chemical formula", place=place, remedy=f"no element is called {symbol[:20]!r}")
    return int(Element(symbol).Z)


def _too_many(place: str, total: int = 0) -> KldmError:
    atoms = f"{total} atoms" if total else "more atoms than can be"
    return KldmError(f"asks for {atoms} in a cell, more than {LARGEST_CELL}", place=place)


def _factors(units: str | None) -> range:
    if units is None:
        return range(1, 2)
    if not (factors := number_range(units)):
        raise KldmError("wants N or N-M formula units", place=f"--z {units}", remedy="write it like 4 or 1-4")
    return factors
