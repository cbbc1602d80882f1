"""Atom types as conditioning: crystal structure prediction."""

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.interfaces import STAYING, Channel, Latent, Move, Noised, Prediction
from kldm.registry import process


@process("given.v1")
@attrs.frozen(kw_only=True)
class Given:
    """The composition is given: the network reads each atom's type, a token Z - 1 in 0..99, and predicts none.

    It has every move, and each leaves the latent as it is, so that the process goes with any sampler.
    """

    @property
    def reads(self) -> tuple[Channel, ...]:
        return (Channel("species", 100, "atom", "token"),)

    @property
    def predicts(self) -> tuple[Channel, ...]:
        return ()

    @property
    def moves(self) -> Mapping[str, Move]:
        return STAYING

    def prior(self, given: Crystals, rng: torch.Generator) -> Latent:
        return {"species": given.species - 1}

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        target: Mapping[str, Tensor] = {}
        return Noised({"species": clean.species - 1}, target)

    def loss(self, prediction: Prediction, noised: Noised, s: Tensor, layout: Layout) -> Tensor:
        """0: nothing is learnt."""
        return torch.zeros((), device=s.device, dtype=s.dtype)

    def estimate(self, latent: Latent, prediction: Prediction, s: Tensor, layout: Layout) -> Latent:
        return latent

    def decode(self, latent: Latent, into: Crystals) -> Crystals:
        return into
