"""The primitive, Niggli-reduced cell that pymatgen's StructureMatcher compares, computed once per structure."""

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from math import gcd
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from kldm.runtime.numbers import Float

if TYPE_CHECKING:
    from pymatgen.core.structure import IStructure, Structure


TOLERANCE = 0.25
"""Angstrom; pymatgen's default for two sites to be images of one another in a smaller cell."""


@attrs.frozen(eq=False)
class ReducedCell:
    """A structure as ``StructureMatcher._get_reduced_structure`` returns it.

    Attributes:
        matrix: [3, 3] rows are basis vectors, angstrom.
        fractional: [n, 3].
        species: one per site, equal by pymatgen's rules (Fe2+ is not Fe3+).
    """

    matrix: Float
    fractional: Float
    species: tuple[object, ...]

    @cached_property
    def counts(self) -> Mapping[object, int]:
        """How many sites each species has."""
        return Counter(self.species)

    @cached_property
    def volume(self) -> float:
        a, b, c = self.matrix
        return float(abs(np.dot(np.cross(a, b), c)))

    def structure(self, matrix: Float) -> "Structure":
        """The same sites in another cell."""
        from pymatgen.core.lattice import Lattice
        from pymatgen.core.structure import Structure

        species: Any = self.species
        return Structure(Lattice(matrix), species, self.fractional)

    @classmethod
    def of(cls, structure: "Structure") -> "ReducedCell":
        """Reduce a structure, always anew: pymatgen since 2026 reuses the reduced cell of an earlier structure that is
        equal within 1e-5 A, so that a result would depend on the structures before it.

        Raises:
            ValueError, numpy.linalg.LinAlgError: a cell is degenerate; pymatgen raises the same.
        """
        from pymatgen.core.lattice import Lattice

        original = structure.lattice
        fractional = np.array(structure.frac_coords, dtype=float)
        if not (np.isfinite(original.matrix).all() and np.isfinite(fractional).all()):
            raise ValueError("the structure is not finite")
        lattice = Lattice(original.matrix).get_niggli_reduced_lattice()
        if np.allclose(lattice.matrix, original.matrix):
            matrix = np.array(original.matrix)
        else:
            fractional = (fractional @ original.matrix) @ lattice.inv_matrix
            fractional = np.mod(fractional, 1)
            matrix = np.array(lattice.matrix)
        species = _species(structure)
        cell = cls(matrix, fractional, species)
        if not cell._may_be_smaller():
            return cell
        primitive = cell.structure(matrix).get_primitive_structure(tolerance=TOLERANCE)
        return cls(np.array(primitive.lattice.matrix), np.array(primitive.frac_coords), _species(primitive))

    def _may_be_smaller(self) -> bool:
        """False if ``get_primitive_structure`` surely finds no smaller cell, by its own first tests.

        A smaller cell holds 1/d of the sites for a divisor d of all species' counts. One of its vectors must
        then have a fractional part of at least 1/d, and lie close to a vector between two sites of the rarest
        species that brings every site near one of its kind.
        """
        counts = self.counts
        divisor = gcd(*counts.values())
        if divisor == 1:
            return False
        tolerance = TOLERANCE / np.sqrt(np.sum(self.matrix**2, axis=1))
        if (tolerance >= 1 / divisor - 1e-9).any():
            return True
        groups = [
            self.fractional[[n for n, other in enumerate(self.species) if other == kind]]
            for kind in sorted(counts, key=lambda kind: counts[kind])
        ]
        # pymatgen takes one of the rarest species; all of them are tried here
        moves = np.concatenate([group - group[0] for group in groups if len(group) == len(groups[0])])
        for group in groups:
            between = group[:, None] - group[None]
            gap = moves[:, None, None] - between
            gap -= np.round(gap)
            moves = moves[(np.abs(gap) <= 2.001 * tolerance).all(-1).any(1).all(-1)]
        moves = moves - np.round(moves)
        return bool((np.abs(moves) > 1e-6).any())


def _species(structure: "Structure | IStructure") -> tuple[object, ...]:
    return tuple(site.specie if site.is_ordered else site.species for site in structure)
