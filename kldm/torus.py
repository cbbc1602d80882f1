"""Pure functions on the circle: wrapping, the score of the wrapped normal and its root mean square.

Angles have period 2 pi. Everything follows the dtype and device of its input, and never waits for the device.
"""

from math import inf, pi

import torch
from torch import Tensor

from kldm.runtime.tables import table

TURN = 2 * pi
"""Radians of a turn. Processes compute in angles; their latents hold fractions of a turn."""

# With x in [-pi, pi] and a variance v, leaving out |k| >= 2 changes the score by at most 3 pi exp(-4 pi^2 / v) / (2 v),
# at |x| = pi. Leaving out the sixth wave changes it by at most 12 exp(-18 v) over the density relative to the uniform
# one, which is at least 0.18 at v = 1.6. There the two errors are 6e-11 and 2e-11; towards smaller v the first falls,
# towards larger v the second, and up to v = 1 the images are exact to rounding.
_IMAGES_UP_TO = 1.6  # variance
_WAVES = 5
_GRID = (4.5, 4096)  # largest interpolated sigma, number of cells; above it the limit for large sigma holds to 2e-9
_NARROW = 0.3  # up to this sigma the limit for small sigma holds to 2e-9


def wrap(x: Tensor, period: float = TURN) -> Tensor:
    """``x`` moved by whole periods into [-period / 2, period / 2)."""
    half = period / 2
    turns = torch.floor(x / period + 0.5)
    # Rounding may leave a result on the wrong side of either end.
    return (x - period * turns).clamp(-half, half * (1 - torch.finfo(x.dtype).eps))


def unit(x: Tensor) -> Tensor:
    """``x`` modulo 1 in [0, 1); a tiny negative number gives 0, never the 1 it rounds to."""
    return x.remainder(1).remainder(1)


def towards(origin: Tensor, target: Tensor, share: Tensor) -> Tensor:
    """The point at the fraction ``share`` of the shortest way from ``origin`` to ``target``, modulo 1, period 1."""
    return unit(origin + share * wrap(target - origin, 1.0))


def wrapped_normal_score(displacement: Tensor, variance: Tensor, widest: float = inf) -> Tensor:
    """d/dmu log WN(r | mu, variance) for each component, period 2 pi, exact to 1e-10.

    With x = r - mu minus whole turns, the density is proportional to sum_k exp(-(x + 2 pi k)^2 / (2 variance)), hence
    the score is sum_k w_k (x + 2 pi k) / variance with w = softmax_k(-2 pi k (x + pi k) / variance) over k = -1, 0, 1;
    the weights are relative to the image k = 0, so that a tiny variance gives x / variance and never 0/0. Variances
    above 1.6 use the Fourier series 1 + 2 sum_m exp(-m^2 variance / 2) cos(m x) of the density up to m = 5 instead.

    Args:
        displacement: r - mu, any shape.
        variance: > 0, broadcastable to ``displacement``.
        widest: an upper bound of the standard deviations; if three images suffice for it, nothing else is computed.
    """
    x = displacement - TURN * (displacement / TURN).round()
    if widest**2 <= _IMAGES_UP_TO:
        return _by_images(x, variance)
    wide = _by_waves(x, variance.clamp(min=_IMAGES_UP_TO))
    return torch.where(variance > _IMAGES_UP_TO, wide, _by_images(x, variance))


def _by_images(x: Tensor, variance: Tensor) -> Tensor:
    shift = torch.linspace(TURN, -TURN, 3, dtype=x.dtype, device=x.device)  # -2 pi k
    weights = torch.softmax((x.unsqueeze(-1) - shift / 2) * (shift / variance.unsqueeze(-1)), -1)
    before, _, after = weights.unbind(-1)
    return (x + TURN * (after - before)) / variance


def _by_waves(x: Tensor, variance: Tensor) -> Tensor:
    m = torch.arange(1, _WAVES + 1, dtype=x.dtype, device=x.device)
    phase = m * x.unsqueeze(-1)
    share = torch.exp(m.square() * (variance.unsqueeze(-1) / -2))
    return (m * share * phase.sin()).sum(-1) / ((share * phase.cos()).sum(-1) + 0.5)


def score_root_mean_square(sigma: Tensor, widest: float = inf) -> Tensor:
    """sqrt(n(sigma)), n(sigma) = E_{r ~ WN(0, sigma^2)} [(d log WN / dmu)^2], any shape, sigma > 0.

    1 / sigma for small sigma, sqrt(2) exp(-sigma^2 / 2) for large; between, log(sigma sqrt(n)) is interpolated on a
    grid computed once by the trapezoidal rule, which converges exponentially for periodic functions. Relative error
    below 5e-7.

    Args:
        sigma: standard deviations in radians.
        widest: an upper bound of them; if it lies on the grid, the limit for large sigma is not computed.
    """
    high, cells = _GRID
    position = sigma * (cells / high)
    if widest > high:
        position = position.clamp(max=cells)
    start, end = _log_root_mean_square(sigma.device, sigma.dtype)[position.to(torch.int64)].unbind(-1)
    inner = torch.lerp(start, end, position.frac()).exp() / sigma
    return torch.where(sigma > high, 2**0.5 * torch.exp(sigma.square() / -2), inner) if widest > high else inner


@table
def _log_root_mean_square(device: torch.device, dtype: torch.dtype) -> Tensor:
    """log(sigma sqrt(n(sigma))) at either end of every cell of the grid, [cells + 1, 2]; the last cell has no width."""
    high, cells = _GRID
    sigma = torch.linspace(0, high, cells + 1, dtype=torch.float64, device="cpu").unsqueeze(-1)
    wide = sigma.clamp(min=_NARROW)
    x = (torch.arange(48, dtype=torch.float64, device="cpu") + 0.5) * (pi / 48)  # even: half the circle is enough
    shift = TURN * torch.arange(-4, 5, dtype=torch.float64, device="cpu").view(-1, 1, 1)
    density = torch.exp(((x + shift) / wide).square() / -2).sum(0)
    mean = (wrapped_normal_score(x, wide.square()).square() * density).sum(-1) / density.sum(-1)
    ends = torch.where(sigma > _NARROW, 0.5 * (mean.unsqueeze(-1) * wide.square()).log(), 0.0).squeeze(-1)
    return torch.stack([ends, torch.cat([ends[1:], ends[-1:]])], -1).to(device=device, dtype=dtype)
