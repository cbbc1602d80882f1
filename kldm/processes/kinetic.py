"""The transition kernel of kinetic Langevin diffusion (Eqs. 12 and 16 with gamma = 1), in closed forms safe in float32.

dtheta = v dt,   dv = -v dt + sqrt(2) dw
v_t = exp(-t) v_0 + sigma_v eps_v
r_t = theta_t - theta_0 ~ WN(tanh(t/2) (v_t + v_0), sigma_r^2)
"""

import attrs
import torch
from torch import Tensor

from kldm.torus import wrapped_normal_score

_SERIES_BELOW = 0.5
_SMALLEST = 1e-30  # keeps quotients finite at t = 0 without a variance floor


def velocity_variance(t: Tensor) -> Tensor:
    """sigma_v^2 = 1 - exp(-2t)."""
    return -torch.expm1(-2 * t)


def position_variance(t: Tensor) -> Tensor:
    """sigma_r^2 = 2 (t - 2 tanh(t/2)), by its series t^3/6 - t^5/60 + ... below t = 0.5, where that form cancels."""
    small = t.clamp(max=_SERIES_BELOW)
    square = small.square()
    series = torch.zeros_like(t)
    for coefficient in reversed(_COEFFICIENTS):
        series = series * square + coefficient
    return torch.where(t < _SERIES_BELOW, series * square * small, 2 * (t - 2 * torch.tanh(t / 2)))


def _series(terms: int) -> tuple[float, ...]:
    """Coefficients of t^3, t^5, ... in 2 (t - 2 tanh(t/2)), from tanh' = 1 - tanh^2."""
    tanh = [1.0]
    for order in range(1, terms + 1):
        tanh.append(-sum(tanh[i] * tanh[order - 1 - i] for i in range(order)) / (2 * order + 1))
    return tuple(-4 * value / 2 ** (2 * order + 1) for order, value in enumerate(tanh) if order)


_COEFFICIENTS = _series(10)


@attrs.frozen(eq=False)
class Kernel:
    """The kernel at times t; made by ``Kernel.at``.

    Attributes:
        decay: exp(-t).
        gain: tanh(t/2), the share of velocity in the mean displacement.
        velocity_variance: sigma_v^2, with the floor.
        position_variance: sigma_r^2, with the floor.
    """

    decay: Tensor
    gain: Tensor
    velocity_variance: Tensor
    position_variance: Tensor

    @classmethod
    def at(cls, t: Tensor, floor: float = 0.0) -> "Kernel":
        """The kernel at times t >= 0 of any shape, with ``floor`` added to both variances."""
        return cls(
            torch.exp(-t),
            torch.tanh(t / 2),
            (velocity_variance(t) + floor).clamp(min=_SMALLEST),
            (position_variance(t) + floor).clamp(min=_SMALLEST),
        )

    def displacement_score(self, displacement: Tensor) -> Tensor:
        """g = d/dmu_r log WN(r | mu_r, sigma_r^2) at ``displacement`` = r - mu_r."""
        return wrapped_normal_score(displacement, self.position_variance)

    def velocity_score(self, g: Tensor, velocity_noise: Tensor) -> Tensor:
        """d log p(r_t, v_t | v_0) / d v_t = tanh(t/2) g - (v_t - exp(-t) v_0) / sigma_v^2  (Eq. 18).

        The first term is the chain rule through mu_r = tanh(t/2) (v_t + v_0), whose derivative by v_t is tanh(t/2) for
        any v_0.

        Args:
            g: the score of ``displacement_score``.
            velocity_noise: v_t - exp(-t) v_0 = sigma_v eps_v.
        """
        return self.gain * g - velocity_noise / self.velocity_variance
