"""What is claimed of the search for neighbours, against the search itself."""

import threading
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import Element, Species
from pymatgen.core.structure import Structure

from kldm.metrics.fingerprinting import fingerprints, voronoi
from kldm.metrics.fingerprinting.fingerprints import has_structure_fingerprint
from kldm.metrics.fingerprinting.voronoi import surely_found
from kldm.metrics.structure import structural_validity
from tests.metrics.matching.test_matcher import real

CUTOFF = 7.0
SITES = ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (0.5, 0.5, 0.0), (0.3, 0.1, 0.7))


def searched(structure: Structure) -> bool | str:
    """The definition: the search at every site."""
    featurizer = fingerprints._site_featurizer(threading.get_ident())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return all(featurizer.has_neighbours(structure, site) for site in range(len(structure)))
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def has_fingerprint(structure: Structure) -> bool | str:
    try:
        return has_structure_fingerprint(structure)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def claims(structure: Structure) -> list[bool]:
    return list(surely_found(structure, CUTOFF))


def crystal(lattice: Lattice, *places: Sequence[float], species: Sequence[str] = ("Cu",)) -> Structure:
    return Structure(lattice, [species[n % len(species)] for n in range(len(places))], np.array(places))


def sheared(structure: Structure, matrix: Sequence[Sequence[int]]) -> Structure:
    return structure.make_supercell(matrix, to_unit_cell=False, in_place=False)


def perturbed(structure: Structure, size: float, seed: int) -> Structure:
    rng = np.random.default_rng(seed)
    cell = structure.lattice.matrix * (1 + size * rng.normal(size=(3, 3)) / 10)
    return Structure(cell, structure.species, structure.frac_coords + size * rng.normal(size=(len(structure), 3)) / 5)


ROCK_SALT = crystal(Lattice([[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]]), *SITES[:2], species=("Na", "Cl"))

CERTAIN = {
    "rock salt": ROCK_SALT,
    "sheared": sheared(ROCK_SALT, [[1, 0, 0], [4, 1, 0], [-3, 2, 1]]),
    "supercell": sheared(ROCK_SALT, [[2, 0, 0], [0, 2, 0], [0, 0, 1]]),
    "one atom": crystal(Lattice.cubic(3), SITES[0]),
    "one atom, edges just within": crystal(Lattice.cubic(6.9), SITES[0]),
    "flat rhombohedron": crystal(Lattice.rhombohedral(3, 20), SITES[0]),
    "dense": crystal(Lattice.cubic(1.2), SITES[0], species=("H",)),
    "atoms 0.5 A apart": crystal(Lattice.cubic(5), SITES[0], (0.1, 0, 0), species=("H", "O")),
    "noble gas": crystal(Lattice.cubic(4), *SITES[:2], species=("He", "Xe")),
    "actinides": crystal(Lattice.cubic(4), *SITES[:2], species=("Pa", "Cm")),
    "far from the origin": crystal(Lattice.cubic(4), (5.0, -7.0, 3.0), (-4.5, 0.5, 9.5)),
}

UNCERTAIN = {
    "thin": crystal(Lattice.tetragonal(4, 40), SITES[0]),
    "slab": crystal(Lattice.hexagonal(3.2, 30), (1 / 3, 2 / 3, 0.02), (2 / 3, 1 / 3, 0.05), species=("Mo", "S")),
    "long": crystal(Lattice.orthorhombic(9, 9, 100), SITES[0], SITES[4]),
    "wide": crystal(Lattice.cubic(60), *SITES[:3]),
    "one atom, edges just beyond": crystal(Lattice.cubic(7.1), SITES[0]),
    "atoms nearly on each other": crystal(Lattice.cubic(5), SITES[0], (1e-4, 0, 0)),
    "images nearly on each other": crystal(Lattice.orthorhombic(0.25, 4, 4), SITES[0]),
    "own images only": crystal(Lattice.orthorhombic(8, 8, 2), SITES[0]),
    "no such radius": crystal(Lattice.cubic(4), *SITES[:2], species=("O", "Bk")),
    "superheavy": crystal(Lattice.cubic(4), SITES[0], species=("Og",)),
    "no neighbours": crystal(Lattice.tetragonal(8, 12), SITES[0], SITES[2]),
}
"""Where the first search fails, or where it is not tried."""

FAILING = {
    "no such radius": "TypeError",
    "superheavy": "TypeError",
    "no neighbours": "ValueError: No Voronoi neighbors found",
}


@pytest.mark.parametrize("name", CERTAIN)
def test_certain(name: str) -> None:
    assert all(claims(CERTAIN[name]))
    assert searched(CERTAIN[name]) is True


@pytest.mark.parametrize("name", UNCERTAIN)
def test_uncertain(name: str) -> None:
    """Nothing is claimed of any site; the search decides, and what it raises is raised."""
    structure = UNCERTAIN[name]
    assert not any(claims(structure))
    answer = searched(structure)
    assert has_fingerprint(structure) == answer
    if name in FAILING:
        assert isinstance(answer, str)
        assert answer.startswith(FAILING[name])
    else:
        assert answer is True


def test_every_element() -> None:
    for number in range(1, 119):
        structure = crystal(Lattice.cubic(5.5), *SITES[:2], species=("Fe", Element.from_Z(number).symbol))
        assert has_fingerprint(structure) == searched(structure)
        assert claims(structure) == [number <= 96] * 2


def test_certain_sites_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> bool:
        raise AssertionError

    monkeypatch.setattr(fingerprints._SiteFeaturizer, "has_neighbours", forbidden)
    assert has_structure_fingerprint(ROCK_SALT)
    with pytest.raises(AssertionError):
        has_structure_fingerprint(UNCERTAIN["thin"])


def test_decorations_are_left_out() -> None:
    """Nothing is claimed of sites with several species or without an oxidation state, nor of slabs."""
    alloy = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    spin = Structure(Lattice.cubic(4), [Species("Na", None)], [[0, 0, 0]])
    slab = crystal(Lattice(np.eye(3) * 4, pbc=(True, True, False)), *SITES[:2])
    assert not any(claims(structure)[0] for structure in (alloy, spin, slab))
    assert has_fingerprint(alloy) == "ImpossibleError: it is disordered"
    assert has_fingerprint(spin) is True
    assert has_fingerprint(slab) is True


def test_oxidation_states_are_left_out() -> None:
    ions = ROCK_SALT.copy().add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    assert not any(claims(ions))
    assert has_structure_fingerprint(ions)


def test_a_vertex_far_away_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vertices of a cubic cell of 3 A are sqrt(3) / 2 of that away."""
    structure = crystal(Lattice.cubic(3), SITES[0])
    monkeypatch.setattr(voronoi, "FARTHEST", 3 * 0.75**0.5 + 1e-6)
    assert claims(structure) == [True]
    monkeypatch.setattr(voronoi, "FARTHEST", 3 * 0.75**0.5 - 1e-6)
    assert claims(structure) == [False]


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    """Cells of any shape, many of them sparse or degenerate, with atoms on special places, near them, or anywhere."""
    a, b, c = (draw(st.floats(1.5, 9)) for _ in range(3))
    edges = draw(st.sampled_from([(a, b, c), (a, a, a), (a, b, 3 * c)]))
    alpha, beta, gamma = draw(st.sampled_from([(90, 90, 90), (60, 60, 60), (90, 90, 120), (70, 80, 100), (30, 90, 90)]))
    lattice = Lattice.from_parameters(edges[0], edges[1], edges[2], alpha, beta, gamma)
    assume(np.isfinite(lattice.matrix).all() and lattice.volume > 15)
    number = draw(st.integers(1, 4))
    places = np.array(draw(st.permutations(SITES))[:number])
    size = draw(st.sampled_from([0.0, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 0.1, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    places += size * rng.normal(size=places.shape)
    species = draw(st.lists(st.sampled_from(["H", "He", "O", "Fe", "Cs", "Xe", "U", "Cm", "Bk", "Og"]), min_size=1))
    structure = crystal(lattice, *places, species=species)
    if draw(st.booleans()):
        structure = sheared(structure, [[1, 0, 0], [draw(st.integers(-2, 2)), 1, 0], [0, draw(st.integers(-2, 2)), 1]])
    return structure


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(structures())
def test_answers_are_those_of_the_search(structure: Structure) -> None:
    assume(not structural_validity(structure))
    assert has_fingerprint(structure) == searched(structure)


@pytest.mark.parametrize("dataset", ["mp_20", "perov_5"])
def test_data_sets(dataset: str) -> None:
    """Rows as they are, and with less and less noise, which takes atoms from symmetry by as little as rounding."""
    rows = [structure for structure in real(dataset, 10) if len(structure) <= 12]
    assert len(rows) >= 5
    for seed, (structure, size) in enumerate(zip(rows, [0.3, 0.03, 1e-6, 1e-12, 1e-15] * 4, strict=False)):
        for crystal in (structure, perturbed(structure, size, seed)):
            assert searched(crystal) is True
            assert has_fingerprint(crystal) is True
            assert all(claims(crystal))
