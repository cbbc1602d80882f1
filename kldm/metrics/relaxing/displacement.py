"""How far a relaxation moves atoms."""

import math
import warnings
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core.structure import Structure

STOL = 0.5
"""Of MatterGen's matcher, and what counts where it finds no match."""


def displacement(before: "Structure", after: "Structure") -> float:
    """Root mean square of the atoms' shortest displacements in the cell of ``after``, their mean removed, angstrom:

        d_i = x_i' - x_i, to the nearest image,   sqrt(mean |(d_i - mean d) M|^2)

    Args:
        before: with the same atoms in the same order.
    """
    moved = after.frac_coords - before.frac_coords
    moved -= np.round(moved)
    moved -= moved.mean(axis=0)
    cartesian = moved @ after.lattice.matrix
    return float(np.sqrt(np.mean(np.sum(cartesian**2, axis=1))))


def displacement_mattergen(before: "Structure", after: "Structure") -> float:
    """MatterGen's RMSD (Zeni et al. 2025), angstrom: the matcher's rms of the relaxed structure against the given one,
    refined, primitive and LLL-reduced; divided by (n / V)^(1/3), n the atoms after relaxation and V the volume of the
    cell with the mean of both cells' six parameters. ``STOL`` in place of the rms where nothing matches.

    It is approximate where the two cells are chosen differently, and displacements of atoms that the matcher finds
    translationally equivalent are averaged away; ``displacement`` has neither flaw.
    """
    from pymatgen.core.lattice import Lattice
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refined = SpacegroupAnalyzer(before).get_refined_structure()
        given = refined.get_primitive_structure().get_reduced_structure(reduction_algo="LLL")
        found = _matcher().get_rms_dist(after, given)  # type: ignore[no-untyped-call]
    parameters = np.mean([after.lattice.parameters, given.lattice.parameters], axis=0)
    volume = Lattice.from_parameters(*parameters).volume
    return float((found[0] if found else STOL) / math.cbrt(len(after) / volume))


@cache
def _matcher() -> "StructureMatcher":
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(ltol=0.5, stol=STOL, angle_tol=10, primitive_cell=True, scale=False, attempt_supercell=True)
