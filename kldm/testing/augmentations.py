"""What every augmentation must do: describe the same crystals in another way."""

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, lattice_matrix
from kldm.interfaces import Augmentation
from kldm.testing.crystals import SIZES, expect, generator, random_crystals

AugmentationCheck = Callable[[Augmentation], None]

_SEEDS = range(10)


def keeps_sizes_and_types(augmentation: Augmentation) -> None:
    """The same numbers of atoms, in the same floating point type."""
    for dtype in (torch.float32, torch.float64):
        before = random_crystals(SIZES, 0, dtype)
        made = augmentation.augmented(before, generator(0))
        expect(made.layout.sizes == SIZES, "crystals have other numbers of atoms than before")
        same = made.fractional.shape == before.fractional.shape and made.lattice.shape == before.lattice.shape
        expect(same, "positions or lattices have another shape than before")
        expect(made.fractional.dtype == made.lattice.dtype == dtype, "numbers have another type than before")
        expect(made.species.dtype == torch.int64, "species are no int64")


def gives_numbers_of_a_crystal(augmentation: Augmentation) -> None:
    """Positions in [0, 1), lengths and angles that are some."""
    for seed in _SEEDS:
        made = augmentation.augmented(random_crystals(SIZES), generator(seed))
        expect(((made.fractional >= 0) & (made.fractional < 1)).all(), "positions are not all in [0, 1)")
        cells = (made.lattice > 0).all() and (made.lattice[:, 3:] < torch.pi).all()
        expect(cells, "lengths are not all positive, or angles not all below pi")


def keeps_the_crystals(augmentation: Augmentation) -> None:
    """The same species, volumes and distances between atoms."""
    before = random_crystals(SIZES)
    for seed in _SEEDS:
        made = augmentation.augmented(before, generator(seed))
        for b, size in enumerate(SIZES):
            rows = slice(int(before.layout.ptr[b]), int(before.layout.ptr[b]) + size)
            same = sorted(before.species[rows].tolist()) == sorted(made.species[rows].tolist())
            expect(same, "a crystal has other species than before")
            alike = torch.allclose(_distances(before, b, rows), _distances(made, b, rows), atol=1e-5)
            expect(alike, "distances between the atoms of a crystal are others than before")
        volumes = (torch.linalg.det(lattice_matrix(one.lattice)).abs() for one in (before, made))
        expect(torch.allclose(*volumes), "a crystal has another volume than before")


def keeps_columns(augmentation: Augmentation) -> None:
    """Columns stay with their crystals, and with their atoms, which may be numbered anew."""
    before = random_crystals(SIZES, columns=("energy",))
    before = attrs.evolve(before, per_atom={"species": before.species})
    made = augmentation.augmented(before, generator(0))
    kept = made.per_crystal.keys() == {"energy"} and torch.allclose(
        made.per_crystal["energy"], before.per_crystal["energy"], rtol=0, atol=0, equal_nan=True
    )
    expect(kept, "a column per crystal is lost or changed")
    kept = made.per_atom.keys() == {"species"} and torch.equal(made.per_atom["species"], made.species)
    expect(kept, "a column per atom is lost, or does not follow its atoms")


def follows_its_generator_alone(augmentation: Augmentation) -> None:
    """The same generator gives the same description whatever torch's own has done, others give others."""
    given = random_crystals(SIZES)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        first = augmentation.augmented(given, generator(0))
        torch.default_generator.manual_seed(2)
        again = augmentation.augmented(given, generator(0))
    others = [augmentation.augmented(given, generator(seed)) for seed in range(1, 5)]
    same = all(torch.equal(getattr(first, n), getattr(again, n)) for n in ("fractional", "lattice", "species"))
    expect(same, "the same generator gives another description")
    expect(not all(torch.equal(first.fractional, o.fractional) for o in others), "every generator gives the same")


def leaves_its_argument_alone(augmentation: Augmentation) -> None:
    """What it is given stays as it was."""
    given, kept = random_crystals(SIZES), random_crystals(SIZES)
    augmentation.augmented(given, generator(0))
    same = all(torch.equal(getattr(given, n), getattr(kept, n)) for n in ("fractional", "lattice", "species"))
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
        AssertionError: one sentence on what does not hold.
    """
    for check in AUGMENTATION_CHECKS:
        check(augmentation)


def _distances(crystals: Crystals, crystal: int, rows: slice) -> Tensor:
    """All distances between the atoms of a crystal and their images in the cells around, sorted, in angstrom."""
    cell, fractional = lattice_matrix(crystals.lattice[crystal : crystal + 1])[0], crystals.fractional[rows]
    shifts = torch.cartesian_prod(*[torch.arange(-2.0, 3.0, dtype=cell.dtype)] * 3)
    offsets = fractional.unsqueeze(0) - fractional.unsqueeze(1)
    vectors = ((offsets - offsets.round()).unsqueeze(2) + shifts) @ cell
    distances: Tensor = torch.linalg.vector_norm(vectors, dim=-1).amin(-1)
    return distances.flatten().sort().values
