"""What a network computes from coordinates and from time, once per call."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from kldm.errors import KldmError

TimeEmbedding = Literal["fourier", "sinusoidal"]


def sinusoids(difference: Tensor, frequencies: int) -> tuple[Tensor, Tensor]:
    """sin(2 pi k d) and cos(2 pi k d) for k = 0 .. frequencies - 1 along each axis (KLDM, Appendix I.2).

    Unchanged when a coordinate moves by a whole cell. The sine is odd and the cosine even in ``difference``, exactly
    so in floating point.

    Args:
        difference: [P, 3] differences of fractional coordinates, at least float32.
        frequencies: how many multiples, k = 0 included.

    Returns:
        Two tensors [P, 3 * frequencies], axis by axis.
    """
    multiples = torch.arange(frequencies, device=difference.device, dtype=difference.dtype)
    turns = (difference.unsqueeze(-1) * multiples).flatten(1)
    # Whole turns are taken off first: sin and cos are faster and more accurate within (-pi, pi].
    phase = (turns - turns.round()) * (2 * math.pi)
    return phase.sin(), phase.cos()


class TimeFeatures(nn.Module):
    """sin and cos of fixed multiples of unit time, [B] to [B, features].

    Args:
        features: how many numbers; even.
        embedding: ``fourier``, angles 2 pi w s with w ~ N(0, 1) drawn once and saved with the weights;
            ``sinusoidal``, angles 1000 s w with w geometric from 1 to 1/10000 (transformers, DiffCSP).
    """

    frequencies: Tensor

    def __init__(self, features: int, embedding: TimeEmbedding) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise KldmError(f"time_features is {features}", remedy="give an even number, at least 2")
        half = features // 2
        if embedding == "fourier":
            frequencies = 2 * math.pi * torch.randn(half)
        else:
            frequencies = 1000.0 * torch.exp(-math.log(10_000.0) * torch.arange(half) / max(half - 1, 1))
        self.register_buffer("frequencies", frequencies)

    def forward(self, s: Tensor) -> Tensor:
        frequencies = self.frequencies.to(torch.promote_types(self.frequencies.dtype, torch.float32))
        angle = s.to(frequencies.dtype).unsqueeze(-1) * frequencies
        return torch.cat([angle.sin(), angle.cos()], -1).to(self.frequencies.dtype)


def distinct(s: Tensor) -> Tensor:
    """The first of the times [B] alone where they are one number expanded, as all crystals have it in a sampling step.

    The stride tells it, so that no value is looked at.
    """
    return s[:1] if s.stride(0) == 0 else s
