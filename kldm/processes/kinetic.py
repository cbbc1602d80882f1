"""The transition kernel of kinetic Langevin diffusion (Eqs. 12 and 16 with gamma = 1), in closed forms safe in float32.

dtheta = v dt,   dv = -v dt + sqrt(2) dw
v_t = exp(-t) v_0 + sigma_v eps_v
r_t = theta_t - theta_0 ~ WN(tanh(t/2) (v_t + v_0), sigma_r^2)
"""

from math import inf, tanh
from typing import NamedTuple

import torch
from torch import Tensor

from kldm.compiling import table
from kldm.torus import score_root_mean_square

# Terms of the series of sigma_r^2 follow one another by (t / pi)^2 in size. Those up to t = 2 are exact to 1e-17 and
# cost less there than a case distinction; without a bound on t, the closed form serves above 0.5.
_SERIES_UP_TO, _TERMS = 2.0, 44
_SERIES_BELOW, _FEW_TERMS = 0.5, 10
_SMALLEST = 1e-30  # keeps quotients finite at t = 0 without a variance floor


def velocity_variance(t: Tensor, floor: float = 0.0) -> Tensor:
    """sigma_v^2 = 1 - exp(-2t), plus ``floor``."""
    return floor - torch.expm1(-2 * t)


def position_variance(t: Tensor, floor: float = 0.0, latest: float = inf) -> Tensor:
    """sigma_r^2 = 2 (t - 2 tanh(t/2)), plus ``floor``, without the cancellation of that form at small t.

    Args:
        t: times from 0, any shape.
        floor: what is added.
        latest: a time that none exceeds; up to 2, the power series t^3/6 - t^5/60 + ... is all that is computed.
    """
    if latest <= _SERIES_UP_TO:
        return _series(t, _TERMS) + floor
    return torch.where(t < _SERIES_BELOW, _series(t, _FEW_TERMS), 2 * (t - 2 * torch.tanh(t / 2))) + floor


def _series(t: Tensor, terms: int) -> Tensor:
    powers, coefficients = _power_series(terms, t.device, t.dtype).unbind()
    return (t.unsqueeze(-1).pow(powers) * coefficients).sum(-1)


@table
def _power_series(terms: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Exponents 3, 5, ... and coefficients of 2 (t - 2 tanh(t/2)), from tanh' = 1 - tanh^2."""
    series = [1.0]  # of tanh(x): x, x^3, ...
    for order in range(1, terms + 1):
        series.append(-sum(series[i] * series[order - 1 - i] for i in range(order)) / (2 * order + 1))
    found = [-4 * value / 2 ** (2 * order + 1) for order, value in enumerate(series) if order]
    return torch.tensor([range(3, 2 * terms + 3, 2), found], dtype=dtype, device=device)


class Kernel(NamedTuple):
    """The kernel at times t; made by ``Kernel.at``. Compilers know named tuples, but no other records.

    Attributes:
        time: t.
        gain: tanh(t/2), the share of velocity in the mean displacement.
        velocity_variance: sigma_v^2, with the floor.
        position_variance: sigma_r^2, with the floor.
        position_std: sigma_r, with the floor.
        widest: a number that sigma_r does not exceed.
    """

    time: Tensor
    gain: Tensor
    velocity_variance: Tensor
    position_variance: Tensor
    position_std: Tensor
    widest: float

    @classmethod
    def at(cls, t: Tensor, floor: float = 0.0, latest: float = inf) -> "Kernel":
        """The kernel at times t >= 0 of any shape, none above ``latest``, with ``floor`` added to both variances."""
        floor = max(floor, _SMALLEST)
        variance = position_variance(t, floor, latest)
        return cls(
            t,
            torch.tanh(t / 2),
            velocity_variance(t, floor),
            variance,
            variance.sqrt(),
            (2 * (latest - 2 * tanh(latest / 2)) + floor) ** 0.5,
        )

    @property
    def decay(self) -> Tensor:
        """exp(-t)."""
        return torch.exp(-self.time)

    @property
    def score_size(self) -> Tensor:
        """sqrt(n(sigma_r)), the root mean square of g = d/dmu_r log WN(r | mu_r, sigma_r^2)."""
        return score_root_mean_square(self.position_std, self.widest)


def velocity_score(g: Tensor, velocity_noise: Tensor, gain: Tensor, velocity_variance: Tensor) -> Tensor:
    """d log p(r_t, v_t | v_0) / d v_t = tanh(t/2) g - (v_t - exp(-t) v_0) / sigma_v^2  (Eq. 18).

    The first term is the chain rule through mu_r = tanh(t/2) (v_t + v_0), whose derivative by v_t is tanh(t/2) for any
    v_0.

    Args:
        g: d/dmu_r log WN(r | mu_r, sigma_r^2).
        velocity_noise: v_t - exp(-t) v_0 = sigma_v eps_v.
        gain, velocity_variance: of the kernel.
    """
    return torch.addcdiv(gain * g, velocity_noise, velocity_variance, value=-1)
