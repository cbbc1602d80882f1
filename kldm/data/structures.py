"""pymatgen Structures from files of strangers: elements at points of a periodic cell, and nothing else.

``Structure.from_dict`` must not be used on such files: it decodes whatever a dict names, site properties included,
and imports the modules that are named there. Here the cell, the elements and the coordinates are read, and all the rest
is left out. Oxidation states, spins and isotopes are no part of any task, so that all metrics see the same crystal.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kldm.data.arrays import fault
from kldm.runtime.numbers import Float

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

LONGEST_EDGE = 1000.0
"""Angstrom. Longer cells are refused: the search for neighbours takes memory for all the space that they span."""

FARTHEST = 1e6
"""Fractional coordinates beyond this are refused: float64 no longer says where in the cell such an atom lies."""


def plain_structure(matrix: Float, numbers: Sequence[int], fractional: Float) -> "Structure":
    """A structure of elements.

    Args:
        matrix: [3, 3], the vectors of the cell as rows, in angstrom.
        numbers: K atomic numbers.
        fractional: [K, 3]. Coordinates outside of [-1, 2) are wrapped into the cell; others are kept to the last bit.

    Raises:
        ValueError: the numbers are no crystal (``kldm.data.arrays.fault``), or are beyond ``LONGEST_EDGE`` or
            ``FARTHEST``. The message is the reason alone.
    """
    from pymatgen.core.lattice import Lattice
    from pymatgen.core.structure import Structure

    matrix, fractional = np.asarray(matrix, dtype=float), np.asarray(fractional, dtype=float).reshape(-1, 3)
    if matrix.shape != (3, 3) or len(fractional) != len(numbers):
        raise ValueError("a cell has three vectors, and every atom three coordinates")
    lattice = Lattice(matrix)
    parameters = np.array([*lattice.abc, *np.radians(lattice.angles)])
    if reason := fault(fractional, parameters, np.asarray(numbers)):
        raise ValueError(reason)
    if max(lattice.abc) > LONGEST_EDGE:
        raise ValueError(f"a cell edge is longer than {LONGEST_EDGE:g} angstrom")
    if np.abs(fractional).max() > FARTHEST:
        raise ValueError(f"a coordinate lies more than {FARTHEST:g} cells away")
    outside = (fractional < -1) | (fractional >= 2)
    species: list[Any] = list(numbers)
    return Structure(lattice, species, np.where(outside, fractional % 1.0, fractional))


def plain(structure: "Structure") -> "Structure":
    """The structure without oxidation states, spins, isotopes and properties, in its own cell.

    Raises:
        ValueError: it is disordered, holds something that is no element, or is refused by ``plain_structure``; the
            message is the reason alone.
    """
    return plain_structure(structure.lattice.matrix, atomic_numbers(structure), structure.frac_coords)


def atomic_numbers(structure: "Structure") -> list[int]:
    """The atomic number of every site.

    Raises:
        ValueError: it is disordered, or holds something that is no element; the message is the reason alone.
    """
    from pymatgen.core.periodic_table import DummySpecies

    if not structure.is_ordered:
        raise ValueError("it is disordered")
    if dummies := [str(site.specie) for site in structure if isinstance(site.specie, DummySpecies)]:
        raise ValueError(f"{dummies[0]} is no element")
    return [site.specie.Z for site in structure]


def structure_of(value: Any) -> "Structure":
    """The structure of a dict as ``Structure.as_dict`` writes it, of which only the cell, the elements and the
    coordinates are read.

    Raises:
        ValueError: it is no such dict, or no crystal; the message is the reason alone.
    """
    lattice, sites = _entry(value, "lattice"), _entry(value, "sites")
    if not isinstance(sites, Sequence) or isinstance(sites, str):
        raise ValueError("'sites' is no list")
    matrix = _matrix(lattice)
    numbers = [_number(site) for site in sites]
    fractional = [_coordinates(site, matrix) for site in sites]
    return plain_structure(matrix, numbers, np.array(fractional))


def numbers_of(value: Any) -> tuple[int, ...]:
    """The atomic numbers of the sites of such a dict, even if it is no crystal; empty if not all are elements."""
    try:
        return tuple(_number(site) for site in _entry(value, "sites"))
    except (ValueError, TypeError):
        return ()


def periodicity_note(pbc: Sequence[object]) -> str:
    """A sentence if the file says that the structure is not periodic along all three axes; empty if it is."""
    if all(pbc):
        return ""
    axes = " ".join("T" if axis else "F" for axis in pbc)
    return f"the file says that it is not periodic along all axes (pbc {axes}); it is judged as a periodic crystal"


def _entry(value: Any, key: str) -> Any:
    if not isinstance(value, Mapping) or key not in value:
        raise ValueError(f"there is no '{key}'")
    return value[key]


def _matrix(lattice: Any) -> Float:
    if isinstance(lattice, Mapping) and "matrix" not in lattice:
        from pymatgen.core.lattice import Lattice

        values = _floats([_entry(lattice, name) for name in ("a", "b", "c", "alpha", "beta", "gamma")], 6, "cell")
        if (values[:3] <= 0).any():
            raise ValueError("cell length not positive")
        return np.asarray(Lattice.from_parameters(*values).matrix)
    return _floats(lattice["matrix"] if isinstance(lattice, Mapping) else lattice, 9, "cell").reshape(3, 3)


def _coordinates(site: Any, matrix: Float) -> Float:
    if isinstance(site, Mapping) and site.get("abc") is not None:
        return _floats(site["abc"], 3, "coordinate")
    try:
        return np.asarray(_floats(_entry(site, "xyz"), 3, "coordinate") @ np.linalg.inv(matrix))
    except np.linalg.LinAlgError:
        raise ValueError("the cell is flat or impossible") from None


def _floats(values: Any, count: int, name: str) -> Float:
    """``count`` real numbers of nested lists. NaN and infinity are numbers here; ``fault`` tells them."""
    try:
        array = np.asarray(values, dtype=object).ravel()
        if len(array) != count or any(isinstance(number, str | bool) for number in array):
            raise ValueError
        return array.astype(float)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"a {name} is not made of {count} numbers") from None


def _number(site: Any) -> int:
    """The atomic number of a site, which must be one whole atom of an element or of a charged or heavy form of it."""
    from pymatgen.core.periodic_table import Element, get_el_sp

    species = _entry(site, "species")
    if not isinstance(species, Sequence) or isinstance(species, str) or not species:
        raise ValueError("a site has no 'species'")
    if len(species) > 1:
        raise ValueError("it is disordered")
    symbol = _entry(species[0], "element")
    if species[0].get("occu", 1) != 1:
        raise ValueError("it is disordered")
    if not isinstance(symbol, str):
        raise ValueError("an element is not given by its symbol")
    try:
        element = getattr(get_el_sp(symbol), "element", None) or Element(symbol)
        return int(element.Z)
    except (ValueError, AttributeError, KeyError):
        raise ValueError(f"{symbol[:20]!r} is no element") from None
