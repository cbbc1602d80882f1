"""What the processes of fractional coordinates share."""

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.interfaces import Channel, Latent
from kldm.processes.draws import uniform
from kldm.torus import unit


@attrs.frozen(kw_only=True)
class TorusProcess:
    """A process whose latent holds fractional coordinates.

    Args:
        zero_net_translation: whether the mean over the atoms of each crystal, a translation that leaves the crystal the
            same, is removed from targets, predictions and the noise of the moves.
    """

    zero_net_translation: bool

    @property
    def reads(self) -> tuple[Channel, ...]:
        return (Channel("fractional", 3, "atom", "periodic"),)

    def prior(self, given: Crystals, rng: torch.Generator) -> Latent:
        """f ~ U[0, 1)."""
        return {"fractional": uniform(given.fractional, rng)}

    def decode(self, latent: Latent, into: Crystals) -> Crystals:
        return attrs.evolve(into, fractional=unit(latent["fractional"]))

    def _projected(self, values: Tensor, layout: Layout) -> Tensor:
        """Values [N, ...] without net translation if ``zero_net_translation``."""
        return layout.centred(values) if self.zero_net_translation else values
