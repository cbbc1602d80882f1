"""Noise and target of KLDM's coordinates as their definitions read: every atom by itself, sums over images in loops."""

from math import pi

import torch
from torch import Tensor

from kldm.crystals import Crystals

IMAGES = 13
LEVELS = 2000
FLOOR = 1e-6
HORIZON = 2.0


def score(x: Tensor, sigma: Tensor) -> Tensor:
    """d/dmu log WN of period 2 pi, as the quotient of two sums over 27 images."""
    density = torch.zeros_like(x)
    for k in range(-IMAGES, IMAGES + 1):
        density = density + torch.exp(-((x + 2 * pi * k) ** 2) / 2 / sigma**2)
    slope = torch.zeros_like(x)
    for k in range(-IMAGES, IMAGES + 1):
        slope = slope + (x + 2 * pi * k) / sigma**2 * torch.exp(-((x + 2 * pi * k) ** 2) / 2 / sigma**2)
    return slope / density


def variances(s: Tensor) -> tuple[Tensor, Tensor]:
    """sigma_v^2 and sigma_r^2 at unit times, in the closed forms of Eq. 16."""
    t = HORIZON * s
    return 1 - torch.exp(-2 * t) + FLOOR, 2 * t + 8 / (torch.exp(t) + 1) - 4 + FLOOR


def sizes() -> Tensor:
    """float64 [LEVELS + 1]: root mean square of the score at s = 0, 1 / LEVELS, ... 1, averaged over a normal law."""
    z = torch.linspace(-9, 9, 361, dtype=torch.float64)
    weight = torch.softmax(-(z**2) / 2, 0)
    _, variance = variances(torch.linspace(0, 1, LEVELS + 1, dtype=torch.float64).unsqueeze(-1))
    sigma = variance.sqrt()
    return (score(sigma * z, sigma) ** 2 * weight).sum(-1).sqrt()


def noised(clean: Crystals, s: Tensor, noise: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, velocities / (2 pi) and targets, [N, 3] each (Algorithm 1).

    Args:
        clean: the crystals.
        s: [B], multiples of 1 / LEVELS.
        noise: standard normal numbers [N, 2, 3], for velocities and positions.
        size: of ``sizes``, in the dtype of the crystals.
    """
    owner, crystals = clean.layout.owner, len(clean)
    time = s[owner].unsqueeze(-1)
    t = HORIZON * time
    variance_v, variance_r = variances(time)
    v = variance_v.sqrt() * _mean_free(noise[:, 0], owner, crystals)
    displacement = variance_r.sqrt() * _mean_free(noise[:, 1], owner, crystals)
    r = (1 - torch.exp(-t)) / (1 + torch.exp(-t)) * v + displacement
    fractional = torch.remainder(clean.fractional + r / (2 * pi), 1.0)
    x = torch.remainder(displacement + pi, 2 * pi) - pi
    level = (time * LEVELS).round().long()
    return fractional, v / (2 * pi), _mean_free(score(x, variance_r.sqrt()), owner, crystals) / size[level]


def _mean_free(values: Tensor, owner: Tensor, crystals: int) -> Tensor:
    total = torch.zeros(crystals, 3, dtype=values.dtype, device=values.device).index_add(0, owner, values)
    count = torch.zeros(crystals, dtype=values.dtype, device=values.device)
    count = count.index_add(0, owner, torch.ones_like(values[:, 0]))
    return values - (total / count.unsqueeze(-1))[owner]
