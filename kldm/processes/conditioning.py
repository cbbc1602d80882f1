"""What all conditioning processes share: the network reads them, and nothing changes them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.interfaces import STAYING, Channel, Latent, Move, Noised, Prediction


class Conditioning(ABC):
    """A process whose latent is known: it has no noise and no loss, and predicts nothing.

    It has every move, and each leaves the latent as it is, so that the process works with any sampler.
    """

    @property
    @abstractmethod
    def reads(self) -> tuple[Channel, ...]:
        """The channels of ``known``."""

    @abstractmethod
    def known(self, crystals: Crystals) -> Latent:
        """What the network is shown of the crystals, at all times."""

    @property
    def predicts(self) -> tuple[Channel, ...]:
        return ()

    @property
    def moves(self) -> Mapping[str, Move]:
        return STAYING

    def prior(self, given: Crystals, rng: torch.Generator) -> Latent:
        return self.known(given)

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        target: Mapping[str, Tensor] = {}
        return Noised(self.known(clean), target)

    def loss(self, prediction: Prediction, noised: Noised, s: Tensor, layout: Layout) -> Tensor:
        """0: nothing is learnt."""
        return torch.zeros((), device=s.device, dtype=s.dtype)

    def estimate(self, latent: Latent, prediction: Prediction, s: Tensor, layout: Layout) -> Latent:
        return latent

    def decode(self, latent: Latent, into: Crystals) -> Crystals:
        return into
