"""How the probability of being masked grows with time in absorbing diffusion (Shi et al., 2024, their Table 4).

It is given as m = 1 - alpha, not as the unmasked probability alpha: near s = 0, where the loss divides by m, the
difference 1 - alpha has lost its digits in float32.
"""

from collections.abc import Callable, Mapping
from math import pi
from typing import Literal

import torch
from torch import Tensor

Masking = Literal["linear", "cosine", "poly2"]

EDGE = 1e-4
"""alpha stays in [EDGE, 1 - EDGE]."""

_SHAPES: Mapping[Masking, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "linear": (lambda s: s, torch.ones_like),
    "cosine": (lambda s: torch.sin(pi / 2 * s), lambda s: pi / 2 * torch.cos(pi / 2 * s)),
    "poly2": (torch.square, lambda s: 2 * s),
}


def masked(schedule: Masking, s: Tensor) -> Tensor:
    """m(s) = 1 - alpha(s) = EDGE + (1 - 2 EDGE) u(s), of the shape of s; u is s, sin(pi s / 2) or s^2.

    The linear map in place of a hard clip keeps m strictly growing and ``rate`` its derivative everywhere.
    """
    return EDGE + (1 - 2 * EDGE) * _SHAPES[schedule][0](s)


def rate(schedule: Masking, s: Tensor) -> Tensor:
    """m'(s) = -alpha'(s) >= 0, of the shape of s."""
    return (1 - 2 * EDGE) * _SHAPES[schedule][1](s)
