"""pymatgen Structures from files of strangers: elements at points of a periodic cell, and nothing else.

``Structure.from_dict`` must not be used on such files: it decodes whatever a dict names, site properties included,
and imports the modules that are named there. Here the cell, the elements and the coordinates are read, and all the rest
is left out. Oxidation states, spins and isotopes are no part of any task, so that all metrics see the same crystal.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kldm.data.arrays import LAST_ELEMENT, cell_fault, fault
from kldm.runtime.numbers import Float

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

LONGEST_EDGE = 300.0
"""Angstrom. Longer cells are refused: the search for neighbours takes memory for all the space that they span."""

MOST_ATOMS = 3000
"""Cells of more atoms are refused: distances between all pairs of them take gigabytes."""

THINNEST, DENSEST = 0.1, 0.1
"""Cells with lattice planes closer than this (angstrom), or with less volume than this per atom (cubic angstrom), are
refused: a search for neighbours meets millions of images in them. Atoms this dense are closer than 0.5 angstrom."""

FARTHEST = 1e6
"""Fractional coordinates beyond this are refused: float64 no longer says where in the cell such an atom lies."""

_SPECIES = re.compile(r"([A-Za-z]{1,2})(?:\d*\.?\d*[+-]|[+-]\d+\.?\d*)?(?:,spin=[-+.\d]+)?", re.ASCII)
"""An element, with or without an oxidation state and a spin."""


class StructureError(ValueError):
    """Why there is no structure; the message is the reason alone.

    Attributes:
        species: atomic numbers of the cell, if they are known all the same.
    """

    species: tuple[int, ...] = ()


class ImpossibleError(StructureError):
    """What was read is no crystal, or a disordered one, as opposed to what cannot be read at all."""


def atomic_number(symbol: str) -> int:
    """The atomic number of an element, which may carry an oxidation state or a spin, be written in lower case, be an
    isotope of hydrogen (D, T), or be given by its number.

    Raises:
        StructureError: it is none; the message is the reason alone.
    """
    from pymatgen.core.periodic_table import Element

    if re.fullmatch(r"\d{1,3}", symbol, re.ASCII) and 1 <= int(symbol) <= LAST_ELEMENT:
        return int(symbol)
    try:
        match = _SPECIES.fullmatch(symbol)
        return int(Element(match[1].capitalize() if match else "").Z)
    except ValueError:
        raise StructureError(f"{symbol[:20]!r} is no element") from None


def cell_matrix(parameters: Sequence[float] | Float) -> Float:
    """The vectors of a cell as rows, [3, 3], in angstrom, by a, b, c (angstrom) and alpha, beta, gamma (degrees).

    Raises:
        ImpossibleError: there is no such cell.
    """
    from pymatgen.core.lattice import Lattice

    if reason := cell_fault(np.array([*parameters[:3], *np.radians(parameters[3:])])):
        raise ImpossibleError(reason)
    return np.asarray(Lattice.from_parameters(*parameters).matrix)


def plain_structure(matrix: Float, numbers: Sequence[int], fractional: Float) -> "Structure":
    """A structure of elements.

    Args:
        matrix: [3, 3], the vectors of the cell as rows, in angstrom.
        numbers: K atomic numbers.
        fractional: [K, 3]. Coordinates outside of [-1, 2) are wrapped into the cell; others are kept to the last bit.

    Raises:
        ImpossibleError: the numbers are no crystal (``kldm.data.arrays.fault``), or are beyond one of the limits above.
            The message is the reason alone.
    """
    from pymatgen.core.lattice import Lattice
    from pymatgen.core.structure import Structure

    matrix, fractional = np.asarray(matrix, dtype=float), np.asarray(fractional, dtype=float).reshape(-1, 3)
    if matrix.shape != (3, 3) or len(fractional) != len(numbers):
        raise ImpossibleError("a cell has three vectors, and every atom three coordinates")
    if len(numbers) > MOST_ATOMS:
        raise ImpossibleError(f"it has more than {MOST_ATOMS} atoms")
    lattice = Lattice(matrix)
    with np.errstate(all="ignore"):  # numbers that are not finite, or whose squares are not, are told by the reason
        parameters = np.array([*lattice.abc, *np.radians(lattice.angles)])
    if reason := fault(fractional, parameters, np.asarray(numbers)):
        raise ImpossibleError(reason)
    if max(lattice.abc) > LONGEST_EDGE:
        raise ImpossibleError(f"a cell edge is longer than {LONGEST_EDGE:g} angstrom")
    thickness = 1 / np.linalg.norm(np.linalg.inv(matrix), axis=0).max()
    if thickness < THINNEST or lattice.volume < DENSEST * len(numbers):
        raise ImpossibleError("its lattice planes or atoms lie impossibly close")
    if np.abs(fractional).max() > FARTHEST:
        raise ImpossibleError(f"a coordinate lies more than {FARTHEST:g} cells away")
    outside = (fractional < -1) | (fractional >= 2)
    species: list[Any] = list(numbers)
    return Structure(lattice, species, np.where(outside, fractional % 1.0, fractional))


def atomic_numbers(structure: "Structure") -> list[int]:
    """The atomic number of every site.

    Raises:
        StructureError: it is disordered, or holds something that is no element; the message is the reason alone.
    """
    from pymatgen.core.periodic_table import DummySpecies

    if not structure.is_ordered:
        raise ImpossibleError("it is disordered")
    if dummies := [str(site.specie) for site in structure if isinstance(site.specie, DummySpecies)]:
        raise StructureError(f"{dummies[0]} is no element")
    return [site.specie.Z for site in structure]


def structure_of(value: Any) -> "Structure":
    """The structure of a dict as ``Structure.as_dict`` writes it, of which only the cell, the elements and the
    coordinates are read.

    Raises:
        StructureError: it is no such dict, or no crystal; the message is the reason alone.
    """
    lattice, sites = _entry(value, "lattice"), _entry(value, "sites")
    if not isinstance(sites, Sequence) or isinstance(sites, str):
        raise StructureError("'sites' is no list")
    numbers = tuple(map(_number, sites))
    matrix = _matrix(lattice)
    return plain_structure(matrix, numbers, np.array([_coordinates(site, matrix) for site in sites]))


def known_species(numbers: Any) -> tuple[int, ...]:
    """A list of atomic numbers, of samples without a structure; empty if not all are elements."""
    valid = isinstance(numbers, list) and all(type(number) is int and 1 <= number <= LAST_ELEMENT for number in numbers)
    return tuple(numbers) if valid else ()


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
        raise StructureError(f"there is no '{key}'")
    return value[key]


def _matrix(lattice: Any) -> Float:
    if not isinstance(lattice, Mapping):
        return _floats(lattice, 9, "cell").reshape(3, 3)
    lengths = [lattice[edge] for edge in "abc" if isinstance(lattice.get(edge), int | float)]
    if any(length <= 0 for length in lengths):  # the matrix does not show it
        raise ImpossibleError("cell length not positive")
    if "matrix" in lattice:
        return _floats(lattice["matrix"], 9, "cell").reshape(3, 3)
    return cell_matrix(
        _floats([_entry(lattice, name) for name in ("a", "b", "c", "alpha", "beta", "gamma")], 6, "cell")
    )


def _coordinates(site: Any, matrix: Float) -> Float:
    if isinstance(site, Mapping) and site.get("abc") is not None:
        return _floats(site["abc"], 3, "coordinate")
    try:
        return np.asarray(_floats(_entry(site, "xyz"), 3, "coordinate") @ np.linalg.inv(matrix))
    except np.linalg.LinAlgError:
        raise ImpossibleError("the cell is flat or impossible") from None


def _floats(values: Any, count: int, name: str) -> Float:
    """``count`` real numbers of nested lists. NaN and infinity are numbers here; ``fault`` tells them."""
    try:
        array = np.asarray(values, dtype=object).ravel()
        if len(array) != count or any(isinstance(number, str | bool) for number in array):
            raise ValueError
        return array.astype(float)
    except (TypeError, ValueError, OverflowError):
        raise StructureError(f"a {name} is not made of {count} numbers") from None


def _number(site: Any) -> int:
    """The atomic number of a site, which must be one whole atom of an element or of a charged or heavy form of it."""
    species = _entry(site, "species")
    if not isinstance(species, Sequence) or isinstance(species, str) or not species:
        raise StructureError("a site has no 'species'")
    if len(species) > 1:
        raise ImpossibleError("it is disordered")
    symbol = _entry(species[0], "element")
    if species[0].get("occu", 1) != 1:
        raise ImpossibleError("it is disordered")
    if not isinstance(symbol, str):
        raise StructureError("an element is not given by its symbol")
    return atomic_number(symbol)
