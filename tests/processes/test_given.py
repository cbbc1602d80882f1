import torch

from kldm.crystals import Layout
from kldm.interfaces import Step
from kldm.processes import Given
from tests.oracles import random_crystals


def test_composition_passes_through_untouched() -> None:
    crystals = random_crystals((2, 3), 0)
    process, rng = Given(), torch.Generator().manual_seed(0)
    latent = process.prior(crystals, rng)
    assert torch.equal(latent["species"] + 1, crystals.species)
    assert torch.equal(process.noise(crystals, torch.ones(2), rng).latent["species"], latent["species"])
    assert torch.equal(process.decode(latent, crystals).species, crystals.species)


def test_every_move_leaves_it_where_it_is() -> None:
    latent, prediction = {"species": torch.arange(3)}, dict[str, torch.Tensor]()
    times = torch.ones(1)
    step = Step(times, times / 2, times, Layout.of((3,)), torch.Generator())
    for name in ("denoise", "flow", "correct", "a_move_of_another"):
        assert name in Given().moves
        assert Given().moves[name](latent, prediction, step) is latent
