"""What processes over a codec's numbers share, whether they diffuse them or let them flow."""

from collections.abc import Mapping, Sequence
from typing import Self

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, CrystalStore, Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, Cleans, Codec, Fits, Json, Latent, Noised, Prediction, Restricts
from kldm.processes.draws import normal


@attrs.frozen(kw_only=True)
class CodedProcess:
    """A process whose latent is what a codec makes of a crystal, under the codec's channel.

    Args:
        codec: which numbers of a crystal, and how they become real ones.

    Raises:
        KldmError: the codec's channel holds no numbers.
    """

    codec: Codec

    def __attrs_post_init__(self) -> None:
        if self.codec.channel.kind not in ("real", "matrix"):
            raise KldmError(f"the codec's channel must be real or matrix, not {self.codec.channel.kind}", place="codec")

    @property
    def reads(self) -> tuple[Channel, ...]:
        return (self.codec.channel,)

    @property
    def predicts(self) -> tuple[Channel, ...]:
        return (self.codec.channel,)

    def prior(self, given: Crystals, rng: torch.Generator) -> Latent:
        """x = z."""
        return {self._name: self._draw(given, rng)}

    def loss(self, prediction: Prediction, noised: Noised, s: Tensor, layout: Layout) -> Tensor:
        """Mean square error over all numbers."""
        return (prediction[self._name] - noised.target[self._name]).square().mean()

    def decode(self, latent: Latent, into: Crystals) -> Crystals:
        return self.codec.decode(latent[self._name], into)

    def fitted(self, train: CrystalStore) -> Self:
        return attrs.evolve(self, codec=self.codec.fitted(train)) if isinstance(self.codec, Fits) else self

    def statistics(self) -> Mapping[str, Json]:
        found = self.codec.statistics() if isinstance(self.codec, Fits) else {}
        return {"codec": found} if found else {}

    def restricted(self, elements: Sequence[int]) -> Self:
        """The same process, whose codec is held to ``elements``, and to those that it is held to already.

        Raises:
            KldmError: the codec is not of species.
        """
        if not isinstance(self.codec, Restricts):
            problem = f"the channel {self._name!r} holds no elements that samples could be held to"
            raise KldmError(problem, place="codec", remedy="ask a process of the species")
        return attrs.evolve(self, codec=self.codec.restricted(elements))

    @property
    def _name(self) -> str:
        return self.codec.channel.name

    def _draw(self, like: Crystals, rng: torch.Generator) -> Tensor:
        """z for crystals of this layout, [B, C] or [N, C]: N(0, I). A process may draw from another law."""
        rows = len(like) if self.codec.channel.per == "crystal" else like.layout.total
        return normal(like.lattice, rng, (rows, self.codec.channel.width))

    def _rows(self, values: Tensor, layout: Layout, like: Tensor) -> Tensor:
        """Values of crystals [B] as a column that goes with the channel's rows."""
        return self._columns(layout, values.to(like.dtype))[0]

    def _columns(self, layout: Layout, *values: Tensor) -> tuple[Tensor, ...]:
        """Numbers of crystals, [B] each, as columns that go with the channel's rows."""
        if self.codec.channel.per == "crystal":
            return tuple(value.unsqueeze(-1) for value in values)
        return layout.columns(*values)

    def _clean(self, start: Tensor) -> Tensor:
        """The estimate of x_0 as all moves take it: with what the codec knows of all data."""
        return self.codec.clean(start) if isinstance(self.codec, Cleans) else start
