"""Crystals to and from pymatgen Structures, ASE Atoms and torch-geometric Data.

Angles are radians in ``Crystals`` and degrees in the three other libraries. Every conversion to kldm keeps lengths,
angles and chirality: a left-handed cell M with coordinates f becomes -M with -f, which are the same points in space.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch

from kldm.crystals import Crystals, CrystalStore, Layout, lattice_matrix
from kldm.data.arrays import Arrays, arrays, fault, pack
from kldm.data.structures import ImpossibleError, plain_structure
from kldm.errors import KldmError
from kldm.runtime.numbers import Float, Int
from kldm.torus import unit

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core.structure import Structure
    from torch_geometric.data import Batch, Data

T = TypeVar("T")


def structure_arrays(structure: "Structure") -> Arrays:
    """A Structure as a store keeps it: the cell as given, without oxidation states.

    Raises:
        ValueError: the structure is disordered, has a dummy species or holds impossible numbers; with the reason.
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


def from_structures(structures: Sequence["Structure"], ids: Sequence[str] | None = None) -> CrystalStore:
    """A store of pymatgen Structures: the cells as given (not reduced), without oxidation states.

    Args:
        structures: ordered structures.
        ids: their names; by default their numbers from 0.

    Raises:
        KldmError: a structure cannot be converted; with its number, its name and the reason.
    """
    return _store(structures, ids, structure_arrays)


def to_structure_or_reason(crystals: Crystals | CrystalStore) -> "list[tuple[Structure | None, str]]":
    """(Structure, "") or (None, the reason why there is none) for each crystal. It never raises because of a crystal.

    It refuses numbers that are not finite, lengths that are not positive, angles outside (0, 180) degrees, flat
    cells (see ``kldm.data.arrays.FLAT``), atomic numbers outside 1 to 118, and what is beyond the limits of
    ``kldm.data.structures``.
    """
    return [_structure(*values) for values in _each(crystals)]


def to_structures(crystals: Crystals | CrystalStore) -> "list[Structure]":
    """One pymatgen Structure for each crystal.

    Raises:
        KldmError: a crystal is impossible, with the reason; ``to_structure_or_reason`` takes them all.
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
        KldmError: a crystal is impossible, with the reason.
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
    """A store of ASE Atoms: the cells as given.

    Args:
        atoms: periodic along all three axes.
        ids: their names; by default their numbers from 0.

    Raises:
        KldmError: a structure cannot be converted; with its number, its name and the reason.
    """
    return _store(atoms, ids, _atoms_arrays)


def to_pyg(crystals: Crystals | CrystalStore) -> "Batch":
    """One torch-geometric Batch of one Data for each crystal, on the crystals' device.

    The fields have the customary names: ``frac_coords`` [N, 3], ``atom_types`` int64 [N], ``lengths``
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
        KldmError: fields are missing or their sizes disagree; with their names.
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
    return Crystals(unit(fractional), lattice, species.to(torch.int64), Layout.of(sizes, fractional.device))


def _store(structures: Sequence[T], ids: Sequence[str] | None, convert: Callable[[T], Arrays]) -> CrystalStore:
    """A store of structures of another library; ``convert`` raises ``ValueError`` if a structure cannot be taken."""
    names = tuple(map(str, range(len(structures)))) if ids is None else tuple(ids)
    if len(names) != len(structures):
        raise KldmError(f"there are {len(structures)} structures, but {len(names)} ids")
    rows = []
    for number, (structure, name) in enumerate(zip(structures, names, strict=True)):
        try:
            rows.append(convert(structure))
        except ValueError as error:
            raise KldmError(str(error), place=f"structure {number} ({name})") from None
    return pack(rows, names)


def _atoms_arrays(atoms: "Atoms") -> Arrays:
    if not all(atoms.pbc):
        raise ValueError("it is not periodic along all three axes")
    matrix = np.asarray(atoms.cell.array, dtype=np.float64)
    if abs(np.linalg.det(matrix)) < 1e-12:
        raise ValueError("its cell has no volume")
    fractional = np.asarray(atoms.positions, dtype=np.float64) @ np.linalg.inv(matrix)
    return arrays(matrix, fractional, np.asarray(atoms.numbers, dtype=np.int64))


def _each(crystals: Crystals | CrystalStore) -> Iterable[tuple[Float, Float, Int]]:
    """(fractional, lattice, species) of each crystal in turn, on the host and in float64."""
    fractional = crystals.fractional.detach().to("cpu", torch.float64).numpy()
    lattice = crystals.lattice.detach().to("cpu", torch.float64).numpy()
    species = crystals.species.detach().cpu().numpy()
    first = 0
    for b, size in enumerate(crystals.layout.sizes):
        yield fractional[first : first + size], lattice[b], species[first : first + size]
        first += size


def _structure(fractional: Float, lattice: Float, species: Int) -> "tuple[Structure | None, str]":
    from pymatgen.core.lattice import Lattice

    if reason := fault(fractional, lattice, species):
        return None, reason
    try:
        cell = Lattice.from_parameters(*lattice[:3], *np.degrees(lattice[3:]))
        return plain_structure(cell.matrix, species.tolist(), fractional), ""
    except ImpossibleError as error:
        return None, str(error)
    except Exception as error:  # one bad crystal must not stop the others
        return None, f"pymatgen refuses it: {error}"
