"""The structural rule: its two thresholds, and everything that slips through a plain distance test."""

import math

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import DummySpecies
from pymatgen.core.structure import Structure

from kldm.metrics.validity import structural_validity


def crystal(cell: Lattice, *places: tuple[float, float, float]) -> Structure:
    """Sodium at each place."""
    return Structure(cell, ["Na"] * len(places), np.array(places))


def pair(distance: float, edge: float = 5.0) -> Structure:
    """Two atoms at this distance along a, in a cubic cell."""
    return crystal(Lattice.cubic(edge), (0, 0, 0), (distance / edge, 0, 0))


def test_valid_structure_has_no_reason() -> None:
    assert structural_validity(pair(2.5)) == ""


@pytest.mark.parametrize(
    ("distance", "valid"), [(0.499, False), (0.501, True), (0.0, False), (4.6, False), (4.4, True)]
)
def test_distance_threshold_uses_the_nearest_image(distance: float, valid: bool) -> None:
    assert (structural_validity(pair(distance)) == "") is valid


@pytest.mark.parametrize(("volume", "valid"), [(0.099, False), (0.101, True)])
def test_volume_threshold_and_own_images_ignored(volume: float, valid: bool) -> None:
    """One atom in a cell of half an angstrom: its images are nearer than 0.5 A, and only V decides."""
    structure = Structure(Lattice.cubic(volume ** (1 / 3)), ["Na"], [[0, 0, 0]])
    assert (structural_validity(structure) == "") is valid


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_coordinates_not_finite(bad: float) -> None:
    structure = crystal(Lattice.cubic(5), (0, 0, 0), (0.5, bad, 0.5))
    assert structural_validity(structure) == "coordinates not finite"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", range(6))
def test_cell_not_finite(bad: float, place: int) -> None:
    parameters = [5.0, 5.0, 5.0, 90.0, 90.0, 90.0]
    parameters[place] = bad
    with np.errstate(all="ignore"):
        structure = Structure(Lattice.from_parameters(*parameters), ["Na"], [[0, 0, 0]])
    assert structural_validity(structure) == "cell not finite"


@pytest.mark.parametrize("lengths", [(-5, 5, 5), (5, -5, 5), (5, 5, -5), (-5, -5, -5)])
@pytest.mark.parametrize("angles", [(90, 90, 90), (80, 100, 70)])
def test_negative_lengths(lengths: tuple[float, ...], angles: tuple[float, ...]) -> None:
    structure = Structure(Lattice.from_parameters(*lengths, *angles), ["Na"], [[0, 0, 0]])
    assert structural_validity(structure) == "cell length not positive"


def test_honest_left_handed_cells_are_valid() -> None:
    """The hexagonal cell with a and b swapped, and a cell with c along x: left-handed, and ordinary crystals."""
    hexagonal = Lattice.hexagonal(3, 5).matrix
    for matrix in (hexagonal[[1, 0, 2]], np.array([[0, 0, 3.0], [0, 4.0, 0], [5.0, 0, 0]])):
        assert np.linalg.det(matrix) < 0
        assert structural_validity(Structure(matrix, ["Na"], [[0, 0, 0]])) == ""


def test_zero_length_and_flat_cells() -> None:
    zero = Structure([[0, 0, 0], [0, 5, 0], [0, 0, 5]], ["Na"], [[0, 0, 0]])
    assert structural_validity(zero) == "cell length not positive"
    flat = crystal(Lattice([[5, 0, 0], [0, 5, 0], [3, 4, 0]]), (0, 0, 0), (0.5, 0.5, 0.5))
    assert structural_validity(flat) == "volume below 0.1 A^3"
    folded = Structure([[5, 0, 0], [5, 0, 0], [0, 0, 5]], ["Na"], [[0, 0, 0]])
    assert structural_validity(folded) == "cell angle outside (0, 180) degrees"


def test_unknown_element_and_no_atoms() -> None:
    dummy = Structure(Lattice.cubic(5), [DummySpecies("X")], [[0, 0, 0]])
    assert structural_validity(dummy) == "element outside 1 to 118"
    assert structural_validity(Structure(Lattice.cubic(5), [], [])) == "no atoms"
    assert structural_validity(None) == "no structure"


def test_options() -> None:
    assert structural_validity(pair(2.5, edge=41.0)) == ""
    assert structural_validity(pair(2.5, edge=41.0), longest_edge=40.0) == "cell edge longer than 40 A"
    assert structural_validity(pair(2.5, edge=39.0), longest_edge=40.0) == ""
    assert structural_validity(pair(1.0), cutoff=1.5) == "atoms closer than 1.5 A"
    assert structural_validity(pair(2.5), minimum_volume=200.0) == "volume below 200 A^3"


def test_a_fault_of_the_library_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Structure) -> None:
        raise np.linalg.LinAlgError("singular")

    monkeypatch.setattr(Structure, "distance_matrix", property(broken))
    assert structural_validity(pair(2.5)) == "cannot be examined: LinAlgError"
