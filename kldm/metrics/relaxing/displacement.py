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
"""Tolerance of MatterGen's matcher; it also takes the place of the rms if nothing matches."""


def displacement(before: "Structure", after: "Structure") -> float:
    """Root mean square of the atoms' shortest displacements in the cell of ``after``, their mean removed, angstrom:

        d_i = x_i' - x_i, to the nearest image,   sqrt(mean |(d_i - mean d) M|^2)

    Args:
        before: the same atoms in the same order.
    """
    difference = after.frac_coords - before.frac_coords
    difference -= np.round(difference)
    difference -= difference.mean(axis=0)
    cartesian = difference @ after.lattice.matrix
    return float(np.sqrt(np.mean(np.sum(cartesian**2, axis=1))))


def displacement_mattergen(before: "Structure", after: "Structure") -> float:
    """MatterGen's RMSD (Zeni et al. 2025), angstrom: the matcher's rms between the relaxed structure and the original,
    which is refined, made primitive and LLL-reduced. The rms is divided by (n / V)^(1/3), with n atoms after relaxation
    and V the volume of the cell with the mean of both cells' six parameters. If nothing matches, ``STOL`` replaces it.

    It is approximate if the two cells are chosen differently, and displacements of atoms that the matcher finds
    translationally equivalent are averaged away; ``displacement`` has neither flaw.
    """
    from pymatgen.core.lattice import Lattice
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refined = SpacegroupAnalyzer(before).get_refined_structure()
        original = refined.get_primitive_structure().get_reduced_structure(reduction_algo="LLL")
        match = _matcher().get_rms_dist(after, original)  # type: ignore[no-untyped-call]
    parameters = np.mean([after.lattice.parameters, original.lattice.parameters], axis=0)
    volume = Lattice.from_parameters(*parameters).volume
    return float((match[0] if match else STOL) / math.cbrt(len(after) / volume))


def displacements(pair: "tuple[Structure, Structure]") -> tuple[float, float | None]:
    """Both displacements of a pair (before, after); MatterGen's is None if no symmetry is found in the structure."""
    try:
        published = displacement_mattergen(*pair)
    except Exception:  # spglib and the matcher raise in many ways
        published = None
    return displacement(*pair), published


@cache
def _matcher() -> "StructureMatcher":
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(ltol=0.5, stol=STOL, angle_tol=10, primitive_cell=True, scale=False, attempt_supercell=True)
