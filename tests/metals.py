"""Small metal crystals, which the effective medium theory of ``emt.v1`` relaxes in milliseconds."""

import numpy as np
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

FCC = ((0.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5))


def fcc(species: str, edge: float) -> Structure:
    """One atom."""
    cell = Lattice(edge / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]))
    return Structure(cell, [species], [[0, 0, 0]])


def ordered(corner: str, face: str, edge: float, noise: float = 0.0, seed: int = 0) -> Structure:
    """The L1_2 structure of Cu3Au: ``corner`` is the rarer of the two."""
    moved = np.array(FCC) + np.random.default_rng(seed).normal(0, noise, (4, 3))
    return Structure(Lattice.cubic(edge), [corner, face, face, face], moved)


def layered(one: str, other: str, edge: float) -> Structure:
    """The L1_0 structure of CuAu, in the cubic cell: (001) planes of the two in turn."""
    return Structure(Lattice.cubic(edge), [one, one, other, other], FCC)
