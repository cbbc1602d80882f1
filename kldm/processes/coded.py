"""What all processes on a codec's numbers share, by diffusion or by flow matching."""

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
    """A process whose latent holds the numbers to which a codec encodes a crystal, in the codec's channel.

    Args:
        codec: which part of a crystal is diffused, and as which real numbers.

    Raises:
        KldmError: the codec's channel is neither real nor matrix.
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
        fit = self.codec.statistics() if isinstance(self.codec, Fits) else {}
        return {"codec": fit} if fit else {}

    def restricted(self, elements: Sequence[int]) -> Self:
        """The same process with its codec restricted to ``elements``, beside any earlier restriction.

        Raises:
            KldmError: the codec is not of species.
        """
        if not isinstance(self.codec, Restricts):
            problem = f"the channel {self._name!r} holds no elements to which samples could be restricted"
            raise KldmError(problem, place="codec", remedy="restrict a process of the species")
        return attrs.evolve(self, codec=self.codec.restricted(elements))

    @property
    def _name(self) -> str:
        return self.codec.channel.name

    def _draw(self, like: Crystals, rng: torch.Generator) -> Tensor:
        """z for crystals of this layout, [B, C] or [N, C]: N(0, I). A process may draw from another law."""
        rows = len(like) if self.codec.channel.per == "crystal" else like.layout.total
        return normal(like.lattice, rng, (rows, self.codec.channel.width))

    def _rows(self, values: Tensor, layout: Layout, like: Tensor) -> Tensor:
        """Values per crystal [B] as a column with one row for each row of the channel."""
        return self._columns(layout, values.to(like.dtype))[0]

    def _columns(self, layout: Layout, *values: Tensor) -> tuple[Tensor, ...]:
        """Values per crystal, [B] each, as columns with one row for each row of the channel."""
        if self.codec.channel.per == "crystal":
            return tuple(value.unsqueeze(-1) for value in values)
        return layout.columns(*values)

    def _clean(self, x_0: Tensor) -> Tensor:
        """The estimate of x_0 as all moves use it: with what the codec knows of all crystals (``Cleans``)."""
        return self.codec.clean(x_0) if isinstance(self.codec, Cleans) else x_0
