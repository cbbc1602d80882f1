"""The size of a Langevin move, shared by every process that corrects."""

import torch
from torch import Tensor

_NO_SCORE = 1e-20


def langevin_size(mean_square: Tensor, tau: float) -> Tensor:
    """delta = tau / mean(S^2), the step of x <- x + delta S + sqrt(2 delta) eps (Algorithm 4).

    It is 0 where the score vanishes and nothing moves, as the velocity of a one-atom crystal without net translation.

    Args:
        mean_square: [B], mean of S^2 over the numbers of each crystal.
        tau: signal-to-noise ratio of the move.
    """
    return torch.where(mean_square > _NO_SCORE, tau / mean_square, 0.0)
