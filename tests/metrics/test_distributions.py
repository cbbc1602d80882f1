"""Wasserstein distances of properties: analytic values, draws, and what is undefined."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import Species
from pymatgen.core.structure import Structure

from kldm.errors import KldmError
from kldm.metrics.distributions import density, drawn, number_of_elements, property_distances, wasserstein

AVOGADRO = 0.602214076  # per mole, times cubic centimetres per cubic angstrom


def crystal(edge: float, *species: str | Species) -> Structure:
    places = [(index / (len(species) or 1), 0, 0) for index in range(len(species))]
    return Structure(Lattice.cubic(edge), list(species), np.array(places).reshape(-1, 3))


def test_density_is_mass_over_volume() -> None:
    assert density(crystal(2.87, "Fe", "Fe")) == pytest.approx(2 * 55.845 / AVOGADRO / 2.87**3, abs=1e-4)


def test_elements_are_counted_once() -> None:
    assert number_of_elements(crystal(5, "Na", "Cl", "Na")) == 2
    assert number_of_elements(crystal(5, Species("Fe", 2), Species("Fe", 3), Species("O", -2))) == 2


def test_hopeless_structures_have_no_properties() -> None:
    with np.errstate(all="ignore"):
        empty = crystal(5)
        flat = Structure(np.zeros((3, 3)), ["Na"], [[0, 0, 0]])
        unknown = Structure(np.full((3, 3), math.nan), ["Na"], [[0, 0, 0]])
        assert [density(hopeless) for hopeless in (empty, flat, unknown)] == [None] * 3
    assert number_of_elements(empty) is None
    assert number_of_elements(flat) == 1


def test_wasserstein_of_points_and_shifts() -> None:
    assert wasserstein([1.0], [4.5]) == pytest.approx(3.5)
    assert wasserstein([0, 0, 1, 1], [0, 1]) == pytest.approx(0, abs=1e-12)  # sizes may differ
    assert wasserstein([0, 1, 3], [5, 6, 8]) == pytest.approx(5)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8), st.integers(0, 100))
def test_wasserstein_of_equal_sizes_is_the_mean_of_sorted_differences(values: list[float], seed: int) -> None:
    other = np.random.default_rng(seed).normal(size=len(values)).tolist()
    expected = np.abs(np.sort(values) - np.sort(other)).mean()
    assert wasserstein(values, other) == pytest.approx(expected, abs=1e-9)


def test_wasserstein_undefined() -> None:
    for first, second in (([], [1.0]), ([1.0], []), ([1.0, math.nan], [1.0]), ([1.0], [math.inf])):
        assert wasserstein(first, second) is None


def test_property_distances_by_name() -> None:
    salt, mixed = crystal(5, "Na", "Cl"), crystal(5, "Na", "Cl", "K")
    found = property_distances([salt, mixed], [salt, salt])
    first, second = density(salt), density(mixed)
    assert first is not None
    assert second is not None
    assert found == pytest.approx({"wdist_density": (second - first) / 2, "wdist_num_elements": 0.5})
    assert property_distances([], [salt]) == {"wdist_density": None, "wdist_num_elements": None}
    assert property_distances([crystal(5), salt], [salt]) == {"wdist_density": 0, "wdist_num_elements": 0}


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_draws_are_without_replacement_and_in_order(size: int, draw: int, seed: int) -> None:
    found = drawn(range(size), draw, seed)
    assert len(found) == min(size, draw)
    assert list(found) == sorted(set(found))
    assert set(found) <= set(range(size))
    assert list(drawn(range(size), draw, seed)) == list(found)


def test_draws_are_uniform_and_differ_by_seed() -> None:
    draws = [drawn("abcdefghij", 3, seed) for seed in range(2000)]
    counts = np.array([sum(letter in draw for draw in draws) for letter in "abcdefghij"])
    assert np.abs(counts / 2000 - 0.3).max() < 5 * math.sqrt(0.3 * 0.7 / 2000)


def test_all_are_taken_without_a_draw() -> None:
    assert list(drawn([3, 1, 2], None, seed=0)) == [3, 1, 2]
    assert list(drawn([], 5, seed=0)) == []
    with pytest.raises(KldmError, match="draw: must be at least 1, got 0"):
        drawn([1], 0, seed=0)
