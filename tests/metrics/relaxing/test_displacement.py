"""Displacements of relaxation against hand-made ones, and MatterGen's against what is known of it."""

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from kldm.metrics.relaxing.displacement import STOL, displacement, displacement_mattergen


def salt(edge: float = 5.6) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(edge), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def moved(structure: Structure, by: np.ndarray) -> Structure:
    """By [N, 3] angstrom, not wrapped."""
    inverse = np.linalg.inv(structure.lattice.matrix)
    return Structure(structure.lattice, structure.species, structure.frac_coords + by @ inverse)


def test_one_atom_moves() -> None:
    """d_1 = x (1 - 1/n), the others -x / n: root mean square x sqrt(n - 1) / n."""
    by = np.zeros((8, 3))
    by[2] = 0.3
    expected = 0.3 * np.sqrt(3) * np.sqrt(7) / 8
    assert displacement(salt(), moved(salt(), by)) == pytest.approx(expected)


def test_a_common_drift_is_no_displacement() -> None:
    assert displacement(salt(), moved(salt(), np.full((8, 3), 0.4))) == pytest.approx(0, abs=1e-12)


def test_atoms_that_leave_the_cell_are_followed() -> None:
    by = np.zeros((8, 3))
    by[0] = -0.2
    after = moved(salt(), by)
    wrapped = Structure(after.lattice, after.species, after.frac_coords % 1)
    assert displacement(salt(), wrapped) == pytest.approx(displacement(salt(), after))


def test_lengths_are_those_of_the_relaxed_cell() -> None:
    before, after = salt(5.6), salt(7.0)
    shifted = Structure(after.lattice, after.species, after.frac_coords + 0.01 * np.eye(8, 3))
    scaled = Structure(before.lattice, after.species, shifted.frac_coords)
    assert displacement(before, shifted) == pytest.approx(1.25 * displacement(before, scaled))
    assert displacement(before, after) == pytest.approx(0, abs=1e-12)


def test_mattergens_averages_equivalent_atoms_away() -> None:
    """Of eight atoms of rock salt, each moved by 0.1 angstrom at random, about 0.02 remains (a known trap)."""
    rng = np.random.default_rng(0)
    by = rng.normal(size=(8, 3))
    by *= 0.1 / np.linalg.norm(by, axis=1, keepdims=True)
    after = moved(salt(), by)
    assert displacement_mattergen(salt(), after) < 0.05 < 0.08 < displacement(salt(), after)


def test_mattergens_agrees_where_nothing_is_equivalent() -> None:
    rng = np.random.default_rng(1)
    places = np.array([[0.02, 0.05, 0.03], [0.45, 0.52, 0.1], [0.51, 0.07, 0.55], [0.1, 0.48, 0.6], [0.7, 0.75, 0.35]])
    before = Structure(Lattice.from_parameters(5, 6, 7, 85, 95, 100), ["Na", "Cl", "K", "Br", "Cs"], places)
    after = moved(before, rng.normal(0, 0.05, (5, 3)))
    assert displacement_mattergen(before, after) == pytest.approx(displacement(before, after), rel=0.01)


def test_mattergens_without_a_match_is_its_tolerance() -> None:
    before = salt()
    after = Structure(Lattice.cubic(5.6), ["Na"] * 4 + ["Cl"] * 4, np.random.default_rng(3).random((8, 3)))
    volume = Lattice.from_parameters(*np.mean([after.lattice.parameters, primitive(before)], axis=0)).volume
    assert displacement_mattergen(before, after) == pytest.approx(STOL / (8 / volume) ** (1 / 3))


def primitive(structure: Structure) -> tuple[float, ...]:
    cell = structure.get_primitive_structure().get_reduced_structure(reduction_algo="LLL").lattice
    return tuple(cell.parameters)
