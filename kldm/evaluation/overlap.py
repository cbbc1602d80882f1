"""Finds structures of a reference that are in the training set too."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from kldm.crystals import CrystalStore

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

LENGTH, ANGLE = 0.01, 0.1
"""Two reduced cells are equal if their lengths and angles differ by at most this much (angstrom, degrees)."""

CellParameters = tuple[float, ...]

CellContent = tuple[tuple[int, ...], Callable[[], CellParameters]]
"""The sorted atomic numbers of a crystal, and a function that returns its reduced cell, called only when needed."""


def overlap(reference: Iterable[CellContent], train: Iterable[CellContent]) -> int:
    """The number of reference crystals that have the atoms and the reduced cell of a training crystal.

    Positions are not compared. A copy whose cell was relaxed by more than ``LENGTH`` or ``ANGLE`` is not found.
    """
    seen: dict[tuple[int, ...], list[Callable[[], CellParameters]]] = {}
    for content, cell in train:
        seen.setdefault(content, []).append(cell)
    cells: dict[tuple[int, ...], list[CellParameters]] = {}
    count = 0
    for content, cell in reference:
        if content not in seen:
            continue
        others = cells.setdefault(content, [other() for other in seen[content]])
        own = cell()
        count += any(_same(own, other) for other in others)
    return count


def of_structures(structures: "Sequence[Structure | None]") -> Iterable[CellContent]:
    """The content of ordered structures in any cell, which is Niggli-reduced for the comparison."""
    for structure in structures:
        if structure is not None and structure.is_ordered:
            yield tuple(sorted(structure.atomic_numbers)), partial(_reduced, structure)


def of_store(store: CrystalStore) -> Iterable[CellContent]:
    """The content of the crystals of a data set, whose cells are reduced already."""
    lattice = store.lattice.cpu().double()
    parameters = torch.cat([lattice[:, :3], torch.rad2deg(lattice[:, 3:])], 1).tolist()
    species: list[int] = store.species.tolist()
    first = 0
    for size, cell in zip(store.sizes, parameters, strict=True):
        yield tuple(sorted(species[first : first + size])), partial(tuple[float, ...], cell)
        first += size


def overlap_note(reference: Iterable[CellContent], train: Iterable[CellContent], name: str) -> tuple[str, ...]:
    """A sentence for the report if the two overlap, otherwise nothing."""
    count = overlap(reference, train)
    if not count:
        return ()
    verb = "structure has" if count == 1 else "structures have"
    return (
        f"{count} reference {verb} the atoms and the cell of one in {name}: what is measured on them may be memory.",
    )


def _reduced(structure: "Structure") -> CellParameters:
    try:
        return tuple(structure.lattice.get_niggli_reduced_lattice().parameters)
    except Exception:  # a cell that cannot be reduced equals no other
        return (float("nan"),) * 6


def _same(own: CellParameters, other: CellParameters) -> bool:
    return all(
        abs(a - b) <= (LENGTH if axis < 3 else ANGLE) for axis, (a, b) in enumerate(zip(own, other, strict=True))
    )
