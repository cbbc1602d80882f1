"""Targets of generation: compositions, numbers of atoms, or crystals with a known part."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, CrystalStore, Layout
from kldm.data.formulas import LARGEST_CELL, number_range
from kldm.errors import KldmError
from kldm.runtime.seeding import seeded
from kldm.sampling.constraints import Constraints

EMPIRICAL = "empirical"


@attrs.frozen(eq=False)
class Targets:
    """The rows to generate structures for, and the constraints on them.

    Attributes:
        store: sizes and known values by row; unknown values are any valid ones.
        constraints: masks over ``store``.
        numbers: the numbers of the rows in results, such as those in their split; None for 0, 1, ...
    """

    store: CrystalStore
    constraints: Constraints
    numbers: tuple[int, ...] | None = None

    def number(self, row: int) -> int:
        """The number of a row in results."""
        return row if self.numbers is None else self.numbers[row]


@attrs.frozen(eq=False)
class KnownPart:
    """The known part of a crystal.

    Attributes:
        species: atomic numbers of the atoms that are known, or whose positions are.
        fractional: [len(species), 3], or None if no position is known.
        lattice: [6], angstrom and radians, or None.
        keeps_species: whether the types of the atoms are known.
    """

    species: tuple[int, ...]
    fractional: Tensor | None = None
    lattice: Tensor | None = None
    keeps_species: bool = True


def compositions(species: Iterable[Sequence[int]], names: Sequence[str]) -> CrystalStore:
    """Targets of which only the atomic numbers are known."""
    rows = [list(numbers) for numbers in species]
    numbers = torch.tensor([number for row in rows for number in row], dtype=torch.int64)
    return attrs.evolve(_blank([len(row) for row in rows], names), species=numbers)


def given_species(store: CrystalStore) -> Targets:
    """Targets with the compositions of a store: crystal structure prediction, with any species process."""
    return Targets(store, Constraints(species=torch.ones(len(store.species), dtype=torch.bool)))


def de_novo(sizes: Sequence[int], part: KnownPart | None = None, elements: tuple[int, ...] | None = None) -> Targets:
    """Targets with these numbers of atoms; ``part`` comes first in each crystal, and the rest is generated.

    Raises:
        KldmError: a crystal has fewer atoms than the part.
    """
    store = _blank(sizes, [f"sample-{number}" for number in range(len(sizes))])
    if part is None:
        return Targets(store, Constraints(elements=elements))
    count = len(part.species)
    if min(sizes) < count:
        raise KldmError(
            f"{count} atoms are known, but a crystal is to have {min(sizes)} atoms", remedy="allow more atoms"
        )
    rows = (store.layout.ptr[:-1].unsqueeze(1) + torch.arange(count)).flatten()
    known = torch.zeros(store.layout.total, dtype=torch.bool)
    known[rows] = True
    species, fractional, lattice = store.species.clone(), store.fractional.clone(), store.lattice
    species[rows] = torch.tensor(part.species, dtype=torch.int64).repeat(len(sizes))
    if part.fractional is not None:
        fractional[rows] = part.fractional.to(fractional).repeat(len(sizes), 1)
    if part.lattice is not None:
        lattice = part.lattice.to(lattice).expand(len(sizes), 6)
    constraints = Constraints(
        elements=elements,
        positions=known if part.fractional is not None and count else None,
        species=known if part.keeps_species and count else None,
        cell=torch.ones(len(sizes), dtype=torch.bool) if part.lattice is not None else None,
    )
    return Targets(attrs.evolve(store, species=species, fractional=fractional, lattice=lattice), constraints)


def with_properties(store: CrystalStore, values: Mapping[str, float]) -> CrystalStore:
    """Targets that all have the given properties, by the names of the columns that a model conditions on."""
    columns = {name: torch.full((len(store),), value, device=store.device) for name, value in values.items()}
    return attrs.evolve(store, per_crystal={**store.per_crystal, **columns})


def histogram(store: CrystalStore) -> dict[str, int]:
    """The number of crystals by their number of atoms, smallest first."""
    counts = Counter(store.sizes)
    return {str(size): counts[size] for size in sorted(counts)}


def drawn_sizes(
    atoms: int | str, counts: Mapping[str, int] | None, number: int, seed: int, at_least: int = 1
) -> tuple[int, ...]:
    """Numbers of atoms for ``number`` crystals.

    Args:
        atoms: ``empirical`` (the frequencies of the training set), a number, or a range such as ``4-20`` (uniform).
        counts: the ``histogram`` of the training set.
        number: number of crystals.
        seed: seed of the draw.
        at_least: smaller numbers of atoms are left out of the histogram or the range.

    Raises:
        KldmError: ``atoms`` is none of these, or no number of atoms is left.
    """
    if atoms == EMPIRICAL:
        if not counts:
            raise KldmError("the training set's numbers of atoms are not known", place="atoms", remedy="give a range")
        weights = {int(size): float(count) for size, count in counts.items()}
    else:
        weights = dict.fromkeys(atom_range(atoms), 1.0)
    weights = {size: weight for size, weight in weights.items() if size >= at_least}
    if not weights:
        raise KldmError(f"no crystal of {at_least} atoms or more is asked for", place=f"atoms = {atoms}")
    rng = seeded(torch.device("cpu"), seed, "atoms")
    drawn = torch.multinomial(torch.tensor(list(weights.values())), number, replacement=True, generator=rng)
    sizes = list(weights)
    return tuple(sizes[index] for index in drawn.tolist())


def atom_range(atoms: int | str) -> range:
    """The numbers of atoms of ``8`` or ``4-20``."""
    sizes = number_range(str(atoms))
    if not sizes or sizes[-1] > LARGEST_CELL:
        raise KldmError(
            f"wants {EMPIRICAL!r}, a number of atoms or a range, each of 1 to {LARGEST_CELL}, not {atoms!r}",
            place="atoms",
            remedy="write it like 8 or 4-20",
        )
    return sizes


def _blank(sizes: Sequence[int], names: Sequence[str]) -> CrystalStore:
    """Targets of which only the number of atoms is known."""
    layout = Layout.of(sizes)
    blank = Crystals(
        fractional=torch.zeros(layout.total, 3),
        lattice=torch.tensor([5.0, 5.0, 5.0, torch.pi / 2, torch.pi / 2, torch.pi / 2]).repeat(len(layout), 1),
        species=torch.ones(layout.total, dtype=torch.int64),
        layout=layout,
    )
    return CrystalStore.of(blank, names)
