"""The times s at which the crystals of a training step are noised."""

import itertools
from collections.abc import Sequence
from typing import Literal

import attrs
import torch
from torch import Tensor

Draw = Literal["independent", "stratified"]


@attrs.frozen(eq=False)
class Times:
    """Draws one time in (s_min, 1] per crystal of a batch.

    A number p in [0, 1) per crystal becomes the time s = 1 - (1 - s_min) Q(p), where Q is the identity, or the quantile
    function of a piecewise constant density of 1 - s.

    Args:
        s_min: the smallest time.
        draw: ``independent`` draws all p from the uniform distribution; ``stratified`` draws p of crystal i of B from
            [i / B, (i + 1) / B), so that a batch covers all times evenly (Kingma et al. 2021, appendix I.1). Batches
            are in random order, hence the time of each crystal is still uniform.
        density: relative density of s in as many equal bins, from s_min to 1; empty for uniform times.
        device: the device of the times.
    """

    s_min: float
    draw: Draw
    density: Sequence[float]
    device: torch.device
    _knots: Tensor | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        total = sum(self.density)
        knots = itertools.accumulate((value / total for value in reversed(self.density)), initial=0.0)
        tensor = torch.tensor(list(knots), device=self.device) if self.density else None
        object.__setattr__(self, "_knots", tensor)

    def weight(self, s: Tensor) -> Tensor:
        """The uniform density divided by that of the times [B]; so weighted, their mean is that of uniform times."""
        if self._knots is None:
            return torch.ones_like(s)
        shares = self._knots.diff().flip(0) * len(self.density)
        bins = ((s - self.s_min) / (1 - self.s_min) * len(self.density)).long().clamp(0, len(self.density) - 1)
        return 1 / shares[bins]

    def __call__(self, count: int, rng: torch.Generator) -> Tensor:
        """[count] times, in float32."""
        p = torch.rand(count, generator=rng, device=self.device)
        if self.draw == "stratified":
            p = (torch.arange(count, device=self.device) + p) / count
        if self._knots is not None:
            p = _quantile(p, self._knots)
        return 1.0 - (1.0 - self.s_min) * p


def _quantile(p: Tensor, knots: Tensor) -> Tensor:
    """Where the piecewise linear distribution function through (k / K, knots[k]) reaches p."""
    bins = torch.bucketize(p, knots[1:-1], right=True)
    low, high = knots[bins], knots[bins + 1]
    return (bins + ((p - low) / (high - low)).clamp(0, 1)) / (len(knots) - 1)
