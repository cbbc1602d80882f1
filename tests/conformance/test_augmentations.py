"""What every registered augmentation must do: describe the same crystals in another way."""

import attrs
import numpy as np
import numpy.typing as npt
import pytest
import torch

import kldm.augmentations  # noqa: F401  (fills the shelf)
from kldm.crystals import Crystals
from kldm.data.convert import to_structures
from kldm.interfaces import Augmentation
from kldm.registry import augmentations
from tests.oracles import random_crystals

OURS = [name for name in augmentations.names() if augmentations.get(name).__module__.startswith("kldm.")]
SIZES = (4, 1, 2, 7, 1, 3)


def crystals(dtype: torch.dtype = torch.float64) -> Crystals:
    made = random_crystals(SIZES, seed=0, dtype=dtype)
    return attrs.evolve(made, per_atom={"charge": torch.arange(sum(SIZES))})


def augmented(name: str, seed: int = 0, given: Crystals | None = None) -> Crystals:
    augmentation: Augmentation = augmentations.get(name)()
    return augmentation.augmented(given or crystals(), torch.Generator().manual_seed(seed))


def distances(made: Crystals) -> list[npt.NDArray[np.float64]]:
    """Of each crystal, sorted, in angstrom."""
    return [np.sort(structure.distance_matrix, axis=None) for structure in to_structures(made)]


@pytest.mark.parametrize("name", OURS)
class TestAugmentation:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_sizes_and_types_of_numbers_stay(self, name: str, dtype: torch.dtype) -> None:
        before = crystals(dtype)
        made = augmented(name, given=before)
        assert made.layout.sizes == SIZES
        assert made.fractional.shape == before.fractional.shape
        assert made.lattice.shape == before.lattice.shape
        assert made.fractional.dtype == made.lattice.dtype == dtype
        assert made.species.dtype == torch.int64
        torch.testing.assert_close(made.per_crystal, before.per_crystal, rtol=0, atol=0, equal_nan=True)
        assert made.per_atom.keys() == before.per_atom.keys() == {"charge"}
        for b, rows in enumerate(torch.split(made.per_atom["charge"], list(SIZES))):  # its atoms may be renumbered
            assert sorted(rows.tolist()) == sorted(torch.split(before.per_atom["charge"], list(SIZES))[b].tolist())

    @pytest.mark.parametrize("seed", range(10))
    def test_numbers_are_those_of_a_crystal(self, name: str, seed: int) -> None:
        made = augmented(name, seed)
        assert ((made.fractional >= 0) & (made.fractional < 1)).all()
        assert (made.lattice > 0).all()
        assert (made.lattice[:, 3:] < torch.pi).all()

    @pytest.mark.parametrize("seed", range(10))
    def test_species_stay_within_their_crystal(self, name: str, seed: int) -> None:
        before, made = crystals(), augmented(name, seed)
        for start, size in zip(before.layout.ptr.tolist(), SIZES, strict=False):
            rows = slice(start, start + size)
            assert sorted(before.species[rows].tolist()) == sorted(made.species[rows].tolist())

    @pytest.mark.parametrize("seed", range(10))
    def test_volumes_and_distances_between_atoms_stay(self, name: str, seed: int) -> None:
        made = augmented(name, seed)
        for one, other in zip(distances(crystals()), distances(made), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        volumes = [[structure.volume for structure in to_structures(one)] for one in (crystals(), made)]
        assert volumes[0] == pytest.approx(volumes[1])

    def test_everything_follows_from_the_generator(self, name: str) -> None:
        torch.manual_seed(1)
        one = augmented(name)
        torch.manual_seed(2)
        again, others = augmented(name), [augmented(name, seed) for seed in range(1, 5)]
        assert torch.equal(one.fractional, again.fractional)
        assert torch.equal(one.lattice, again.lattice)
        assert torch.equal(one.species, again.species)
        assert not all(torch.equal(one.fractional, other.fractional) for other in others)

    def test_leaves_what_it_is_given_as_it_was(self, name: str) -> None:
        given, kept = crystals(), crystals()
        augmented(name, given=given)
        assert torch.equal(given.fractional, kept.fractional)
        assert torch.equal(given.lattice, kept.lattice)
        assert torch.equal(given.species, kept.species)
