import torch

from kldm.interfaces import Corrects, Flows, Integrates, Predicts
from kldm.processes import Given
from tests.oracles import random_crystals


def test_composition_passes_through_untouched() -> None:
    crystals = random_crystals((2, 3), 0)
    process, rng = Given(), torch.Generator().manual_seed(0)
    latent = process.prior(crystals, rng)
    assert torch.equal(latent["species"] + 1, crystals.species)
    assert torch.equal(process.noise(crystals, torch.ones(2), rng).latent["species"], latent["species"])
    assert torch.equal(process.decode(latent, crystals).species, crystals.species)


def test_goes_with_every_sampler() -> None:
    assert all(isinstance(Given(), capability) for capability in (Flows, Predicts, Corrects, Integrates))
