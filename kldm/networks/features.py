"""What a network computes from coordinates and from time, once per call."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kldm.errors import KldmError
from kldm.validators import one_of, validate, within

TimeEmbedding = Literal["fourier", "sinusoidal", "log_noise"]


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
    """sin and cos of fixed multiples of a clock, [B] to [B, features].

    Args:
        features: how many numbers; even.
        embedding: ``fourier``, angles 2 pi w s with w ~ N(0, 1) drawn once and saved with the weights;
            ``sinusoidal``, angles 1000 s w with w geometric from 1 to 1/10000 (transformers, DiffCSP);
            ``log_noise``, as ``fourier`` with log(sigma) / 4 in the place of s, sigma being the standard deviation of
            the coordinates' noise (Karras et al., 2022): near s = 0 equal steps of s are very unequal steps of noise.
        log_noise: log(sigma) at times s; see ``Interface``.

    Raises:
        KldmError: the number of features is odd, or ``log_noise`` is chosen while the process of the coordinates does
            not give its noise.
    """

    frequencies: Tensor

    def __init__(
        self, features: int, embedding: TimeEmbedding, log_noise: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        validate("time_embedding", embedding, one_of(*get_args(TimeEmbedding)))
        validate("time_features", features, within(2, 10**5))
        if features % 2:
            raise KldmError(f"must be even, got {features}", place="time_features")
        if embedding == "log_noise" and log_noise is None:
            raise KldmError(
                "cannot be log_noise, as the process of the coordinates does not say what its noise is",
                place="time_embedding",
                remedy="take fourier, or a process with a method log_noise",
            )
        self.log_noise = log_noise if embedding == "log_noise" else None
        half = features // 2
        if embedding == "sinusoidal":
            frequencies = 1000.0 * torch.exp(-math.log(10_000.0) * torch.arange(half) / max(half - 1, 1))
        else:
            frequencies = 2 * math.pi * torch.randn(half)
        self.register_buffer("frequencies", frequencies)

    def forward(self, s: Tensor) -> Tensor:
        frequencies = self.frequencies.to(torch.promote_types(self.frequencies.dtype, torch.float32))
        clock = s.to(frequencies.dtype)
        if self.log_noise is not None:
            clock = self.log_noise(clock) / 4
        angle = clock.unsqueeze(-1) * frequencies
        return torch.cat([angle.sin(), angle.cos()], -1).to(self.frequencies.dtype)
