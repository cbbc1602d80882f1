"""MP2020 corrections against the published numbers (Wang et al., Scientific Reports 2021, Table 1)."""

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from kldm.metrics.relaxing.corrections import mp2020

OXIDE, PEROXIDE, CHLORIDE, FLUORIDE = -0.687, -0.465, -0.614, -0.462
IRON, MANGANESE = -2.256, -1.668

BODY = ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5))


def rock_salt(cation: str, anion: str, edge: float) -> Structure:
    cell = Lattice.cubic(edge)
    return Structure.from_spacegroup("Fm-3m", cell, [cation, anion], BODY)


def peroxide() -> Structure:
    """Two oxygens 1.49 angstrom apart, beside sodium."""
    places = np.array([[0, 0, 0], [1.49, 0, 0], [3, 3, 3], [3, 0, 3]]) / 6
    return Structure(Lattice.cubic(6), ["O", "O", "Na", "Na"], places)


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        (rock_salt("Fe", "O", 4.3), 4 * (OXIDE + IRON)),
        (rock_salt("Mg", "O", 4.2), 4 * OXIDE),
        (rock_salt("Na", "Cl", 5.6), 4 * CHLORIDE),
        (rock_salt("Mn", "F", 4.5), 4 * (FLUORIDE + MANGANESE)),
        (peroxide(), 2 * PEROXIDE),
        (rock_salt("Fe", "S", 4.9), 4 * -0.503),  # no Hubbard U beside sulphur
        (rock_salt("Cu", "Au", 4.0), 0.0),
        (Structure(Lattice.cubic(2.9), ["Fe", "Fe"], BODY), 0.0),
    ],
)
def test_corrections_are_the_published_ones(structure: Structure, expected: float) -> None:
    assert mp2020(structure) == pytest.approx(expected, abs=1e-6)


def test_the_order_of_the_atoms_does_not_matter() -> None:
    places = np.random.default_rng(0).random((6, 3))
    species = ["O", "Fe", "Li", "O", "Mn", "O"]
    plain = Structure(Lattice.cubic(6), species, places)
    for order in ([1, 2, 4, 0, 3, 5], [5, 4, 3, 2, 1, 0], [4, 0, 1, 3, 5, 2]):
        turned = Structure(Lattice.cubic(6), [species[n] for n in order], places[order])
        assert mp2020(turned) == pytest.approx(mp2020(plain), abs=1e-9)
    assert mp2020(rock_salt("O", "Fe", 4.3)) == pytest.approx(4 * (OXIDE + IRON))


def test_chlorine_beside_oxygen_is_corrected() -> None:
    structure = Structure(Lattice.cubic(5), ["Bi", "O", "Cl"], (*BODY, (0.5, 0.0, 0.0)))
    assert mp2020(structure) == pytest.approx(OXIDE + CHLORIDE, abs=1e-6)
