"""Same, unique and new materials."""

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from kldm.metrics.relaxing.similarity import Comparator, _similar, novel, same, unique
from tests.metals import FCC, fcc, layered, ordered

BOTH: tuple[Comparator, ...] = ("ordered", "disordered")


def turned(first: str, second: str, edge: float) -> Structure:
    """CuAu with the two in a checkerboard of the (001) plane: another order than ``layered``, in eight atoms."""
    places = [(x, y, z) for x, y, z in np.array(FCC) / np.array([1, 1, 2])]
    places += [(x, y, z + 0.5) for x, y, z in places]
    species = [first, first, second, second, first, second, first, second]
    return Structure(Lattice.from_parameters(edge, edge, 2 * edge, 90, 90, 90), species, places)


@pytest.mark.parametrize("matcher", BOTH)
def test_another_cell_of_the_same_material(matcher: Comparator) -> None:
    salt = ordered("Cs", "Cl", 5.0)
    moved = salt.copy()
    moved.translate_sites(range(4), [0.1, 0.2, 0.3])
    assert same(salt, moved, matcher)
    assert same(salt, salt * (2, 1, 1), matcher)
    assert same(salt, ordered("Cs", "Cl", 5.5), matcher), "volumes are scaled"
    assert not same(salt, ordered("Cl", "Cs", 5.0), matcher), "another composition"


def test_orders_of_similar_elements_are_one_alloy() -> None:
    first, second = layered("Cu", "Au", 3.9), turned("Cu", "Au", 3.9)
    assert first.composition.reduced_formula == second.composition.reduced_formula
    assert not same(first, second, "ordered")
    assert same(first, second, "disordered")


def test_orders_of_unlike_elements_stay_apart() -> None:
    first, second = layered("Na", "Cl", 5.0), turned("Na", "Cl", 5.0)
    assert not same(first, second, "disordered")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("Cu", "Au", True),
        ("Fe", "Co", True),
        ("Na", "Cl", False),
        ("Li", "Cs", False),
        ("O", "S", False),
        ("C", "Si", False),
    ],
)
def test_similar_elements(first: str, second: str, expected: bool) -> None:
    """Radii (angstrom) and Pauling's electronegativities: Cu 1.35 1.90, Au 1.35 2.54, Li 1.45 0.98, Cs 2.60 0.79,
    O 0.60 3.44, S 1.00 2.58."""
    assert _similar(first, second) is _similar(second, first) is expected


@pytest.mark.parametrize("gas", ["He", "Ne", "Ar", "Kr", "Xe", "Rn"])
def test_noble_gases_are_like_nothing(gas: str) -> None:
    """They have no radius or no electronegativity, and a difference of None would raise."""
    assert not _similar(gas, "F")
    assert not _similar("Ar", gas) or gas == "Ar"
    assert not same(layered(gas, "F", 5.0), turned(gas, "F", 5.0), "disordered")


def test_the_first_of_equals_is_kept() -> None:
    given = [ordered("Au", "Cu", 3.7), ordered("Cu", "Au", 4.0), ordered("Au", "Cu", 3.8), fcc("Cu", 3.6)]
    assert unique(given, "ordered") == [True, True, False, True]
    assert unique(given[::-1], "ordered") == [True, True, True, False]
    assert unique([], "ordered") == []


def test_elements_that_merge_are_unique_once() -> None:
    given = [layered("Cu", "Au", 3.9), turned("Cu", "Au", 3.9)]
    assert unique(given, "ordered") == [True, True]
    assert unique(given, "disordered") == [True, False]


def test_new_is_what_is_not_known() -> None:
    known = [ordered("Au", "Cu", 3.7), fcc("Ag", 4.1)]
    given = [ordered("Au", "Cu", 3.9), ordered("Cu", "Au", 4.0), fcc("Ag", 4.0) * (2, 2, 1), fcc("Cu", 3.6)]
    assert novel(given, known, "disordered") == [False, True, False, True]
    assert novel(given, [], "disordered") == [True] * 4


def test_workers_change_nothing() -> None:
    given = [ordered("Au", "Cu", 3.7), ordered("Au", "Cu", 3.8), fcc("Cu", 3.6)]
    assert unique(given, "ordered", workers=2) == unique(given, "ordered") == [True, False, True]
