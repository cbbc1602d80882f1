"""Whether a generated structure is possible at all: the structural rule of CDVAE, without its blind spots."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import numpy.typing as npt

from kldm.data.arrays import LAST_ELEMENT
from kldm.data.structures import atomic_numbers
from kldm.errors import reason_of
from kldm.interfaces import Candidate, Samples

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

CUTOFF = 0.5
"""Angstrom; atoms closer than this make a structure invalid (Xie et al. 2022, used by every method since)."""

MINIMUM_VOLUME = 0.1
"""Cubic angstrom; cells smaller than this are invalid (Xie et al. 2022)."""


def structural_validity(
    structure: "Structure | None",
    *,
    cutoff: float = CUTOFF,
    minimum_volume: float = MINIMUM_VOLUME,
    longest_edge: float | None = None,
) -> str:
    """Why a structure is invalid, or ``""`` for a valid one: min over i < j of d_ij >= ``cutoff`` and V >=
    ``minimum_volume``, d_ij being the distance to the nearest image.

    Anything that is not finite, a length or an angle that no cell has and an atomic number outside 1 to 118 are
    invalid too: comparisons with NaN are false, so that a plain distance test would let them pass. An atom and its
    own images are not compared, so a one-atom cell is judged by its cell alone. The reasons are few and hold
    no measured numbers, so that they can be counted.

    A pymatgen ``Lattice`` keeps no sign of a length. An odd number of negative lengths is still seen, in the
    left-handed cell that ``Lattice.from_parameters`` makes of them; code that builds structures from lengths should
    refuse negative ones itself.

    Args:
        structure: None, where no structure could be built, is invalid.
        cutoff: angstrom.
        minimum_volume: cubic angstrom.
        longest_edge: angstrom; if given, cells with a longer edge are invalid (the KLDM and EquiCSP codes: 40).

    It never raises: whatever goes wrong is the reason.
    """
    if structure is None:
        return "no structure"
    try:
        return _fault(structure, cutoff, minimum_volume, longest_edge)
    except Exception as error:  # one hopeless structure must not end the evaluation of the others
        return f"cannot be examined: {reason_of(error)}"


def structural_rule(longest_edge: float | None = None) -> str:
    """The rule in words, for the definition of a result."""
    limit = f", edges <= {longest_edge:g} A" if longest_edge is not None else ""
    return (
        "all finite, lengths > 0, angles in (0, 180) degrees, "
        f"volume >= {MINIMUM_VOLUME:g} A^3, atomic numbers 1 to {LAST_ELEMENT}, distances >= {CUTOFF:g} A{limit}"
    )


def undecorated(samples: Samples) -> Samples:
    """The samples and their reference as all metrics judge them: elements in a periodic cell.

    Oxidation states, spins, isotopes and axes that are called not periodic are no part of any task. A structure that is
    disordered, or holds what is no element, is no structure; a candidate keeps the reason. Files are read so that
    nothing is left to be done here, but structures may come from Python too.
    """

    def of(candidate: Candidate) -> Candidate:
        if candidate.structure is None:
            return candidate
        try:
            return attrs.evolve(candidate, structure=elements_only(candidate.structure))
        except ValueError as error:
            return attrs.evolve(candidate, structure=None, reason=str(error))

    def reference() -> "Iterator[Structure | None]":
        for structure in samples.reference:
            try:
                yield None if structure is None else elements_only(structure)
            except ValueError:
                yield None

    return attrs.evolve(samples, candidates=tuple(map(of, samples.candidates)), reference=tuple(reference()))


def elements_only(structure: "Structure") -> "Structure":
    """The structure without oxidation states, spins and isotopes, periodic along all axes; itself if it is so already.

    Raises:
        ValueError: it is disordered, or holds something that is no element; the message is the reason alone.
    """
    from pymatgen.core.lattice import Lattice
    from pymatgen.core.periodic_table import Element
    from pymatgen.core.structure import Structure

    numbers = atomic_numbers(structure)
    kinds = {site.specie for site in structure}
    if all(structure.lattice.pbc) and all(type(kind) is Element and kind.value == kind.symbol for kind in kinds):
        return structure
    species: list[Any] = list(numbers)
    return Structure(Lattice(structure.lattice.matrix), species, structure.frac_coords)


def structure_bytes(structure: "Structure") -> bytes:
    """Species, cell and coordinates to the last bit, for a digest that identifies the structure."""
    species = ",".join(site.species_string for site in structure)
    cell = np.ascontiguousarray(structure.lattice.matrix, dtype=np.float64).tobytes()
    return (
        f"\n{len(structure)} {species}\n".encode()
        + cell
        + np.ascontiguousarray(structure.frac_coords, dtype=np.float64).tobytes()
    )


def _fault(structure: "Structure", cutoff: float, minimum_volume: float, longest_edge: float | None) -> str:
    matrix = np.asarray(structure.lattice.matrix, dtype=float)
    if len(structure) == 0:
        return "no atoms"
    if not np.isfinite(matrix).all():
        return "cell not finite"
    if not np.isfinite(structure.frac_coords).all():
        return "coordinates not finite"
    if min(structure.lattice.abc) <= 0 or _negative_length(matrix):
        return "cell length not positive"
    if not all(0 < angle < 180 for angle in structure.lattice.angles):
        return "cell angle outside (0, 180) degrees"
    if not (np.isfinite(structure.volume) and structure.volume >= minimum_volume):
        return f"volume below {minimum_volume:g} A^3"
    if longest_edge is not None and max(structure.lattice.abc) > longest_edge:
        return f"cell edge longer than {longest_edge:g} A"
    if not all(1 <= element.Z <= LAST_ELEMENT for element in structure.composition.elements):
        return f"element outside 1 to {LAST_ELEMENT}"
    i, j = np.triu_indices(len(structure), k=1)
    if not (structure.distance_matrix[i, j] >= cutoff).all():
        return f"atoms closer than {cutoff:g} A"
    return ""


def _negative_length(matrix: npt.NDArray[np.float64]) -> bool:
    """Whether the cell is left-handed with c along z and a in the xz plane, which ``from_parameters`` makes only of
    negative lengths. Left-handed cells in another orientation are allowed."""
    in_setting = matrix[0, 1] == matrix[2, 0] == matrix[2, 1] == 0
    return bool(in_setting and matrix[0, 0] * matrix[1, 1] * matrix[2, 2] < 0)
