"""Whether the structures that samples are judged against were trained on."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from kldm.crystals import CrystalStore

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

LENGTH, ANGLE = 0.01, 0.1
"""Angstrom and degrees within which two reduced cells count as one."""

CellParameters = tuple[float, ...]

Twin = tuple[tuple[int, ...], Callable[[], CellParameters]]
"""The atomic numbers of a crystal, in order, and its reduced cell, made only when it is asked for."""


def overlap(reference: Iterable[Twin], train: Iterable[Twin]) -> int:
    """How many reference crystals have the atoms and the reduced cell of one in the training set.

    Positions are not compared, and a copy whose cell was relaxed by more than ``LENGTH`` or ``ANGLE`` is not found.
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


def of_structures(structures: "Sequence[Structure | None]") -> Iterable[Twin]:
    """Structures in any cell, Niggli-reduced for the comparison."""
    for one in structures:
        if one is not None:
            yield tuple(sorted(one.atomic_numbers)), partial(_reduced, one)


def of_store(store: CrystalStore) -> Iterable[Twin]:
    """The crystals of a data set, whose cells are reduced already."""
    lattice = store.lattice.cpu().double()
    parameters = torch.cat([lattice[:, :3], torch.rad2deg(lattice[:, 3:])], 1).tolist()
    species: list[int] = store.species.tolist()
    first = 0
    for size, cell in zip(store.sizes, parameters, strict=True):
        yield tuple(sorted(species[first : first + size])), partial(tuple[float, ...], cell)
        first += size


def overlap_note(reference: Iterable[Twin], train: Iterable[Twin], name: str) -> tuple[str, ...]:
    """A sentence for the report where the two overlap, or nothing."""
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
    except Exception:  # a hopeless cell is like no other
        return (float("nan"),) * 6


def _same(one: CellParameters, other: CellParameters) -> bool:
    return all(
        abs(a - b) <= (LENGTH if axis < 3 else ANGLE) for axis, (a, b) in enumerate(zip(one, other, strict=True))
    )
