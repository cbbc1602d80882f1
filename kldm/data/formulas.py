"""Chemical formulas to the atoms of a cell, and back."""

import re
import warnings
from collections.abc import Mapping, Sequence
from math import gcd
from typing import TYPE_CHECKING, TypeVar

import attrs

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
    match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    return range(first, last + 1) if first else range(0)


def cells(formulas: Sequence[str], units: str | None = None) -> tuple[Cell, ...]:
    """The cells that the formulas describe.

    Args:
        formulas: each is the exact content of one cell, such as ``Na2Cl2``.
        units: ``N`` or ``N-M`` formula units: the formulas are reduced first, and each number gives one cell.

    Raises:
        KldmError: a text is not a formula, has a fractional count or an element beyond Z = 100, or a cell has more
            than 500 atoms.
    """
    from pymatgen.core.composition import Composition

    result = []
    for formula in formulas:
        place = f"--formula {formula}"
        try:
            composition = Composition(formula, strict=True)
        except (ValueError, KeyError, TypeError) as error:
            raise KldmError("not a chemical formula", place=place, remedy="write it like LiFePO4") from error
        amounts = composition.get_el_amt_dict()
        if not amounts or any(amount != round(amount) for amount in amounts.values()):
            raise KldmError("wants whole numbers of atoms", place=place)
        numbers = _by_number(composition)
        if max(numbers) > 100:
            raise KldmError("it has an element beyond atomic number 100", place=place)
        counts = numbers if units is None else reduced_counts(numbers)
        for factor in _factors(units):
            atoms = tuple(number for number, count in counts.items() for _ in range(count * factor))
            if len(atoms) > LARGEST_CELL:
                raise KldmError(f"asks for {len(atoms)} atoms in a cell, more than {LARGEST_CELL}", place=place)
            result.append(Cell(formula if units is None else f"{formula} x {factor}", atoms))
    return tuple(result)


def _by_number(composition: "Composition") -> dict[int, int]:
    """The number of atoms by atomic number. D and H, which pymatgen keeps apart, are added."""
    from pymatgen.core.periodic_table import Element

    return {Element(symbol).Z: round(amount) for symbol, amount in composition.get_el_amt_dict().items()}


def _factors(units: str | None) -> range:
    if units is None:
        return range(1, 2)
    if not (factors := number_range(units)):
        raise KldmError("wants N or N-M formula units", place=f"--z {units}", remedy="write it like 4 or 1-4")
    return factors
