"""Random numbers of the shape, type and device of others."""

from collections.abc import Sequence

import torch
from torch import Tensor


def normal(like: Tensor, rng: torch.Generator, shape: Sequence[int] | None = None) -> Tensor:
    """Independent draws from N(0, 1), of the shape of ``like`` or of another."""
    return torch.randn(shape or like.shape, generator=rng, dtype=like.dtype, device=like.device)


def uniform(like: Tensor, rng: torch.Generator, shape: Sequence[int] | None = None) -> Tensor:
    """Independent draws from U[0, 1), of the shape of ``like`` or of another."""
    return torch.rand(shape or like.shape, generator=rng, dtype=like.dtype, device=like.device)
