"""Checks of augmentations: they must describe the same crystals in another way."""

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, lattice_matrix
from kldm.interfaces import Augmentation
from kldm.testing.crystals import SIZES, expect, generator, random_crystals, run_checks

AugmentationCheck = Callable[[Augmentation], None]

_SEEDS = range(10)


def keeps_sizes_and_types(augmentation: Augmentation) -> None:
    """Crystals keep their numbers of atoms and their floating point type."""
    for dtype in (torch.float32, torch.float64):
        before = random_crystals(SIZES, 0, dtype)
        after = augmentation.augmented(before, generator(0))
        expect(after.layout.sizes == SIZES, "crystals have different numbers of atoms than before")
        same = after.fractional.shape == before.fractional.shape and after.lattice.shape == before.lattice.shape
        expect(same, "positions or lattices have a different shape than before")
        expect(after.fractional.dtype == after.lattice.dtype == dtype, "numbers have a different type than before")
        expect(after.species.dtype == torch.int64, "species are not int64")


def gives_numbers_of_a_crystal(augmentation: Augmentation) -> None:
    """Positions are in [0, 1), lengths are positive, and angles are between 0 and pi."""
    for seed in _SEEDS:
        after = augmentation.augmented(random_crystals(SIZES), generator(seed))
        expect(((after.fractional >= 0) & (after.fractional < 1)).all(), "positions are not all in [0, 1)")
        cells = (after.lattice > 0).all() and (after.lattice[:, 3:] < torch.pi).all()
        expect(cells, "lengths are not all positive, or angles not all below pi")


def keeps_the_crystals(augmentation: Augmentation) -> None:
    """Crystals keep their species, volumes and distances between atoms."""
    before = random_crystals(SIZES)
    for seed in _SEEDS:
        after = augmentation.augmented(before, generator(seed))
        for b, size in enumerate(SIZES):
            rows = slice(int(before.layout.ptr[b]), int(before.layout.ptr[b]) + size)
            same = sorted(before.species[rows].tolist()) == sorted(after.species[rows].tolist())
            expect(same, "a crystal has different species than before")
            alike = torch.allclose(_distances(before, b, rows), _distances(after, b, rows), atol=1e-5)
            expect(alike, "distances between the atoms of a crystal have changed")
        volumes = (torch.linalg.det(lattice_matrix(crystals.lattice)).abs() for crystals in (before, after))
        expect(torch.allclose(*volumes), "the volume of a crystal has changed")


def keeps_columns(augmentation: Augmentation) -> None:
    """Columns stay with their crystals, and with their atoms, which may get another order."""
    before = random_crystals(SIZES, columns=("energy",))
    before = attrs.evolve(before, per_atom={"species": before.species})
    after = augmentation.augmented(before, generator(0))
    same = after.per_crystal.keys() == {"energy"} and torch.allclose(
        after.per_crystal["energy"], before.per_crystal["energy"], rtol=0, atol=0, equal_nan=True
    )
    expect(same, "a column per crystal is lost or changed")
    same = after.per_atom.keys() == {"species"} and torch.equal(after.per_atom["species"], after.species)
    expect(same, "a column per atom is lost, or does not follow its atoms")


def follows_its_generator_alone(augmentation: Augmentation) -> None:
    """The description depends on the generator that is given, and not on torch's global one."""
    before = random_crystals(SIZES)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        first = augmentation.augmented(before, generator(0))
        torch.default_generator.manual_seed(2)
        again = augmentation.augmented(before, generator(0))
    others = [augmentation.augmented(before, generator(seed)) for seed in range(1, 5)]
    same = all(torch.equal(getattr(first, n), getattr(again, n)) for n in ("fractional", "lattice", "species"))
    expect(same, "the same generator gives two different descriptions")
    expect(not all(torch.equal(first.fractional, o.fractional) for o in others), "every generator gives the same")


def leaves_its_argument_alone(augmentation: Augmentation) -> None:
    """The crystals that it is given do not change."""
    before, copy = random_crystals(SIZES), random_crystals(SIZES)
    augmentation.augmented(before, generator(0))
    same = all(torch.equal(getattr(before, n), getattr(copy, n)) for n in ("fractional", "lattice", "species"))
    expect(same, "it writes into the crystals that it is given")


AUGMENTATION_CHECKS: tuple[AugmentationCheck, ...] = (
    keeps_sizes_and_types,
    gives_numbers_of_a_crystal,
    keeps_the_crystals,
    keeps_columns,
    follows_its_generator_alone,
    leaves_its_argument_alone,
)


def check_augmentation(augmentation: Augmentation) -> None:
    """Every check on an augmentation.

    Raises:
        AssertionError: a check fails; one sentence says what is wrong.
    """
    run_checks(AUGMENTATION_CHECKS, augmentation)


def _distances(crystals: Crystals, crystal: int, rows: slice) -> Tensor:
    """All distances between the atoms of a crystal and their images in neighbouring cells, sorted, in angstrom."""
    cell, fractional = lattice_matrix(crystals.lattice[crystal : crystal + 1])[0], crystals.fractional[rows]
    shifts = torch.cartesian_prod(*[torch.arange(-2.0, 3.0, dtype=cell.dtype)] * 3)
    offsets = fractional.unsqueeze(0) - fractional.unsqueeze(1)
    vectors = ((offsets - offsets.round()).unsqueeze(2) + shifts) @ cell
    distances: Tensor = torch.linalg.vector_norm(vectors, dim=-1).amin(-1)
    return distances.flatten().sort().values
