"""Crystals to and from pymatgen Structures, ASE Atoms and torch-geometric Data.

Angles are radians in ``Crystals`` and degrees in the three other worlds. Every way in keeps lengths, angles and
the chirality of the crystal: a left-handed cell M with coordinates f becomes -M with -f, the same points in space.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kldm.crystals import Crystals, CrystalStore, Layout, lattice_matrix
from kldm.errors import KldmError

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core.structure import Structure
    from torch_geometric.data import Batch, Data

Float = NDArray[np.float64]
Arrays = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]
"""One crystal as a store keeps it: fractional [K, 3], lattice [6], atomic numbers [K]."""

FLAT = 1e-3
"""A cell whose volume is below this part of a * b * c is called flat: no crystal comes near (Niggli cells: > 0.5)."""

LAST_ELEMENT = 118


def fault(fractional: Float, lattice: Float, species: NDArray[np.int64]) -> str:
    """Why these numbers are no crystal; empty where they are one.

    Args:
        fractional: [K, 3].
        lattice: [6], angstrom and radians.
        species: [K].
    """
    if len(species) == 0:
        return "there are no atoms"
    if not np.isfinite(lattice).all():
        return "the cell holds a number that is not finite"
    if not np.isfinite(fractional).all():
        return "the coordinates hold a number that is not finite"
    lengths, angles = lattice[:3], lattice[3:]
    if (lengths <= 0).any():
        return f"a cell length is not positive ({lengths.min():.4g} angstrom)"
    if ((angles <= 0) | (angles >= np.pi)).any():
        return f"a cell angle lies outside 0 to 180 degrees ({', '.join(f'{a:.4g}' for a in np.degrees(angles))})"
    cosines = np.cos(angles)
    squared = 1 - (cosines**2).sum() + 2 * cosines.prod()  # (volume / abc)^2
    if squared < FLAT**2:
        return f"the cell is flat or impossible (angles {', '.join(f'{a:.4g}' for a in np.degrees(angles))})"
    with np.errstate(over="ignore"):
        if not np.isfinite(lengths.prod()):
            return "the volume of the cell is not finite"
    if (species < 1).any() or (species > LAST_ELEMENT).any():
        outside = species[(species < 1) | (species > LAST_ELEMENT)]
        return f"no element has the atomic number {outside[0]}"
    return ""


def wrapped(fractional: Float) -> NDArray[np.float32]:
    """Coordinates in [0, 1) as float32, in which the largest float64 below 1 would round to 1."""
    values = (fractional % 1.0).astype(np.float32)
    values[values >= 1] = 0
    return values


def arrays(matrix: Float, fractional: Float, species: NDArray[np.int64]) -> Arrays:
    """A cell given by its vectors (rows, [3, 3] angstrom) as a store keeps it.

    Raises:
        ValueError: where the numbers are no crystal; the message is the reason alone.
    """
    lengths = np.linalg.norm(matrix, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = [matrix[i] @ matrix[j] / (lengths[i] * lengths[j]) for i, j in ((1, 2), (0, 2), (0, 1))]
        lattice = np.concatenate([lengths, np.arccos(np.clip(cosines, -1, 1))])
    if reason := fault(fractional, lattice, species):
        raise ValueError(reason)
    if np.linalg.det(matrix) < 0:
        fractional = -fractional
    return wrapped(fractional), lattice.astype(np.float32), species


def structure_arrays(structure: "Structure") -> Arrays:
    """A Structure as a store keeps it, oxidation states dropped, cell as given.

    Raises:
        ValueError: for a disordered structure, a dummy species or impossible numbers, with the reason.
    """
    from pymatgen.core.periodic_table import DummySpecies

    if not structure.is_ordered:
        raise ValueError("it is disordered")
    dummies = [str(site.specie) for site in structure if isinstance(site.specie, DummySpecies)]
    if dummies:
        raise ValueError(f"{dummies[0]} is no element")
    species = np.array([site.specie.Z for site in structure], dtype=np.int64)
    matrix = np.asarray(structure.lattice.matrix, dtype=np.float64)
    return arrays(matrix, np.asarray(structure.frac_coords, dtype=np.float64).reshape(-1, 3), species)


def pack(crystals: Iterable[Arrays], ids: Sequence[str]) -> CrystalStore:
    """A store of these crystals in this order, on the CPU."""
    rows = list(crystals)
    return CrystalStore(
        fractional=torch.from_numpy(np.concatenate([row[0] for row in rows] or [np.empty((0, 3), np.float32)])),
        species=torch.from_numpy(np.concatenate([row[2] for row in rows] or [np.empty(0, np.int64)])),
        lattice=torch.from_numpy(np.stack([row[1] for row in rows]) if rows else np.empty((0, 6), np.float32)),
        sizes=tuple(len(row[2]) for row in rows),
        ids=tuple(ids),
    )


def from_structures(structures: Sequence["Structure"], ids: Sequence[str] | None = None) -> CrystalStore:
    """A store of pymatgen Structures, cells as given (not reduced), oxidation states dropped.

    Args:
        structures: ordered structures.
        ids: their names; by default their numbers from 0.

    Raises:
        KldmError: naming the structure that cannot be taken, and why.
    """
    names = _names(ids, len(structures))
    rows = []
    for number, structure in enumerate(structures):
        try:
            rows.append(structure_arrays(structure))
        except ValueError as error:
            raise KldmError(str(error), place=f"structure {number} ({names[number]})") from None
    return pack(rows, names)


def to_structure_or_reason(crystals: Crystals | CrystalStore) -> "list[tuple[Structure | None, str]]":
    """One (Structure, "") or (None, why there is none) for each crystal. Never raises on what a crystal holds.

    Refused are numbers that are not finite, lengths that are not positive, angles outside (0, 180) degrees, flat
    cells (see ``FLAT``) and atomic numbers outside 1 to 118.
    """
    return [_structure(*numbers) for numbers in _each(crystals)]


def to_structures(crystals: Crystals | CrystalStore) -> "list[Structure]":
    """One pymatgen Structure for each crystal.

    Raises:
        KldmError: for the first crystal that is none; ``to_structure_or_reason`` takes them all.
    """
    result = []
    for number, (structure, reason) in enumerate(to_structure_or_reason(crystals)):
        if structure is None:
            raise KldmError(reason, place=f"crystal {number}")
        result.append(structure)
    return result


def to_ase(crystals: Crystals | CrystalStore) -> "list[Atoms]":
    """One periodic ASE Atoms for each crystal.

    Raises:
        KldmError: for the first crystal that is none.
    """
    from ase import Atoms

    result = []
    for number, (fractional, lattice, species) in enumerate(_each(crystals)):
        if reason := fault(fractional, lattice, species):
            raise KldmError(reason, place=f"crystal {number}")
        cell = lattice_matrix(torch.from_numpy(lattice)).numpy()
        result.append(Atoms(numbers=species, scaled_positions=fractional, cell=cell, pbc=True))
    return result


def from_ase(atoms: Sequence["Atoms"], ids: Sequence[str] | None = None) -> CrystalStore:
    """A store of ASE Atoms, cells as given.

    Args:
        atoms: periodic along all three axes.
        ids: their names; by default their numbers from 0.

    Raises:
        KldmError: naming the one that cannot be taken, and why.
    """
    names = _names(ids, len(atoms))
    rows = []
    for number, one in enumerate(atoms):
        place = f"structure {number} ({names[number]})"
        if not all(one.pbc):
            raise KldmError("it is not periodic along all three axes", place=place)
        try:
            matrix = np.asarray(one.cell.array, dtype=np.float64)
            if abs(np.linalg.det(matrix)) < 1e-12:
                raise ValueError("its cell has no volume")
            fractional = np.asarray(one.positions, dtype=np.float64) @ np.linalg.inv(matrix)
            rows.append(arrays(matrix, fractional, np.asarray(one.numbers, dtype=np.int64)))
        except ValueError as error:
            raise KldmError(str(error), place=place) from None
    return pack(rows, names)


def to_pyg(crystals: Crystals | CrystalStore) -> "Batch":
    """One torch-geometric Batch of one Data for each crystal, on the crystals' device.

    Fields, by the names customary for crystals: ``frac_coords`` [N, 3], ``atom_types`` int64 [N], ``lengths``
    [B, 3] angstrom, ``angles`` [B, 3] DEGREES, ``num_atoms`` int64 [B], ``edge_index`` int64 [2, E] (all directed
    edges without self-edges, sorted by target) and PyG's own ``batch`` and ``ptr``.
    """
    from torch_geometric.data import Batch, Data

    layout = crystals.layout
    lengths, angles = crystals.lattice[:, :3], torch.rad2deg(crystals.lattice[:, 3:])
    edges = torch.split(layout.edge_index, [size * (size - 1) for size in layout.sizes], dim=1)
    first = 0
    items = []
    for b, size in enumerate(layout.sizes):
        atoms = slice(first, first + size)
        item = Data(
            frac_coords=crystals.fractional[atoms],
            atom_types=crystals.species[atoms],
            lengths=lengths[b : b + 1],
            angles=angles[b : b + 1],
            num_atoms=layout.num_atoms[b : b + 1],
            edge_index=edges[b] - first,
            num_nodes=size,
        )
        items.append(item)
        first += size
    return cast("Batch", Batch.from_data_list(items))


def from_pyg(data: "Data | Batch") -> Crystals:
    """The crystals of a torch-geometric Data or Batch with the fields that ``to_pyg`` writes (edges are not read).

    Raises:
        KldmError: naming the fields that are missing or whose sizes disagree.
    """
    missing = [name for name in ("frac_coords", "atom_types", "lengths", "angles", "num_atoms") if name not in data]
    if missing:
        raise KldmError(f"the torch-geometric data lack {', '.join(missing)}", remedy="name the fields as to_pyg does")
    fields = cast(Any, data)
    fractional, species = fields.frac_coords, fields.atom_types
    counts = torch.as_tensor(fields.num_atoms, device=fractional.device).reshape(-1)
    sizes = [int(size) for size in counts.tolist()]
    lattice = torch.cat([fields.lengths.reshape(-1, 3), torch.deg2rad(fields.angles.reshape(-1, 3))], 1)
    if not sum(sizes) == len(fractional) == len(species) or len(sizes) != len(lattice):
        raise KldmError(
            f"num_atoms counts {sum(sizes)} atoms in {len(sizes)} crystals, but there are {len(fractional)} "
            f"coordinates, {len(species)} atom types and {len(lattice)} cells"
        )
    return Crystals(_wrapped(fractional), lattice, species.to(torch.int64), Layout.of(sizes, fractional.device))


def _wrapped(fractional: Tensor) -> Tensor:
    values = fractional.remainder(1.0)
    return torch.where(values >= 1, torch.zeros_like(values), values)


def _names(ids: Sequence[str] | None, count: int) -> tuple[str, ...]:
    names = tuple(str(number) for number in range(count)) if ids is None else tuple(ids)
    if len(names) != count:
        raise KldmError(f"there are {count} structures, but {len(names)} ids")
    return names


def _each(crystals: Crystals | CrystalStore) -> Iterable[tuple[Float, Float, NDArray[np.int64]]]:
    """fractional, lattice and species of one crystal after another, on the host in float64."""
    fractional = crystals.fractional.detach().to("cpu", torch.float64).numpy()
    lattice = crystals.lattice.detach().to("cpu", torch.float64).numpy()
    species = crystals.species.detach().cpu().numpy()
    first = 0
    for b, size in enumerate(crystals.layout.sizes):
        yield fractional[first : first + size], lattice[b], species[first : first + size]
        first += size


def _structure(fractional: Float, lattice: Float, species: NDArray[np.int64]) -> "tuple[Structure | None, str]":
    from pymatgen.core.lattice import Lattice
    from pymatgen.core.periodic_table import Element
    from pymatgen.core.structure import Structure

    if reason := fault(fractional, lattice, species):
        return None, reason
    try:
        cell = Lattice.from_parameters(*lattice[:3], *np.degrees(lattice[3:]))
        return Structure(cell, [Element.from_Z(int(number)) for number in species], fractional), ""
    except Exception as error:  # one bad crystal must never cost the others
        return None, f"pymatgen refuses it: {error}"
