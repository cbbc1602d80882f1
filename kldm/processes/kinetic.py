"""The transition kernel of kinetic Langevin diffusion (Eqs. 12 and 16 with gamma = 1), in closed forms safe in float32.

dtheta = v dt,   dv = -v dt + sqrt(2) dw
v_t = exp(-t) v_0 + sigma_v eps_v
r_t = theta_t - theta_0 ~ WN(tanh(t/2) (v_t + v_0), sigma_r^2)

``Joint`` is the Gaussian law of (r, v) with v_0 ~ N(0, s_0^2) integrated out; ``flow`` and ``posterior`` are the two
exact ways from one time to an earlier one, given theta_0.
"""

from math import inf, log, tanh
from typing import NamedTuple

import torch
from torch import Tensor

from kldm.runtime.tables import table
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
        latest: an upper bound of t; up to 2, only the power series t^3/6 - t^5/60 + ... is computed.
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
    coefficients = [-4 * value / 2 ** (2 * order + 1) for order, value in enumerate(series) if order]
    return torch.tensor([range(3, 2 * terms + 3, 2), coefficients], dtype=dtype, device=device)


class Kernel(NamedTuple):
    """The kernel at times t; made by ``Kernel.at``.

    Attributes:
        time: t.
        gain: tanh(t/2), the share of velocity in the mean displacement.
        velocity_variance: sigma_v^2, with the floor.
        position_variance: sigma_r^2, with the floor.
        position_std: sigma_r, with the floor.
        widest: an upper bound of sigma_r.
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
    return gain * g - velocity_noise / velocity_variance


class Joint(NamedTuple):
    """v_t = velocity_std w_1 and r_t = gain v_t + position_std w_2 with independent w_1, w_2 ~ N(0, 1), given theta_0.

    With v_0 = 0 that is gain = tanh(t/2), sigma_v and sigma_r. Else, with V = sigma_v^2 + s_0^2 exp(-2t), the mean of
    v_0 given v_t is m v_t, m = s_0^2 exp(-t) / V, its variance s_0^2 sigma_v^2 / V, and both enter r_t times tanh(t/2).

    Attributes:
        gain, velocity_std, position_std: as above, with the floor in sigma_v^2 and sigma_r^2.
    """

    gain: Tensor
    velocity_std: Tensor
    position_std: Tensor

    @classmethod
    def at(cls, t: Tensor, floor: float = 0.0, latest: float = inf, initial_velocity_std: float = 0.0) -> "Joint":
        """The law at times t >= 0 of any shape, none above ``latest``."""
        kernel = Kernel.at(t, floor, latest)
        if not initial_velocity_std:
            return cls(kernel.gain, kernel.velocity_variance.sqrt(), kernel.position_std)
        initial = initial_velocity_std**2
        variance = kernel.velocity_variance + initial * kernel.decay.square()
        mean, remaining = initial * kernel.decay / variance, initial * kernel.velocity_variance / variance
        position_variance = kernel.position_variance + kernel.gain.square() * remaining
        return cls(kernel.gain * (1 + mean), variance.sqrt(), position_variance.sqrt())


_EARLIEST = 1e-6  # below this share of the latest time the flow is not rotated; any angle keeps the law
_ANGLES = 4096


def flow(t: Tensor, r: Tensor, latest: float, initial_velocity_std: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle by which the probability flow turns (w_1, w_2) on its way from t back to r.

    The flow dr = v dt, dv = -(v + d log p / d v) dt keeps the law N(0, I) of (w_1, w_2) and is linear, hence it is a
    rotation: dw_1/dt = -omega w_2, dw_2/dt = omega w_1 with omega = gain / (velocity_std position_std). For v_0 = 0
    omega is sqrt(3) / (2t) at small t, so the angle is tabulated over log t.

    Args:
        t, r: times, 0 <= r <= t <= latest, of one shape.
        latest, initial_velocity_std: see ``Joint.at``.
    """
    low = log(_EARLIEST * latest)
    turned = _angle(latest, initial_velocity_std, t.device, t.dtype)
    position = (torch.stack([t, r]).clamp(min=_EARLIEST * latest, max=latest).log() - low) * (_ANGLES / -log(_EARLIEST))
    cell = position.to(torch.int64).clamp(max=_ANGLES - 1)
    after, before = torch.lerp(turned[cell], turned[cell + 1], position - cell).unbind()
    angle = after - before
    return angle.cos(), angle.sin()


@table
def _angle(latest: float, initial_velocity_std: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The integral of omega over t from the earliest tabulated time, [_ANGLES + 1], by Simpson's rule over log t."""
    t = torch.linspace(log(_EARLIEST * latest), log(latest), 2 * _ANGLES + 1, dtype=torch.float64, device="cpu").exp()
    gain, velocity_std, position_std = Joint.at(t, 0.0, latest, initial_velocity_std)
    rate = t * gain / (velocity_std * position_std)
    step = -log(_EARLIEST) / _ANGLES
    cells = (rate[:-2:2] + 4 * rate[1::2] + rate[2::2]) * (step / 6)
    return torch.cat([cells.new_zeros(1), cells.cumsum(0)]).to(device=device, dtype=dtype)


class Posterior(NamedTuple):
    """p(w_1, w_2 at r | those at t, theta_0): the mean is (a w_1 + b w_2, c w_2), to which (spread_1 n_1 + shared n_2,
    spread_2 n_2) is added with independent standard normal n_1 and n_2."""

    a: Tensor
    b: Tensor
    c: Tensor
    spread_1: Tensor
    spread_2: Tensor
    shared: Tensor


def posterior(t: Tensor, r: Tensor, latest: float, initial_velocity_std: float = 0.0) -> Posterior:
    """The Gaussian conditional of the linear SDE between r < t, computed in float64, in the dtype of t.

    From r to t, v_t = e v_r + ..., r_t = r_r + (1 - e) v_r + ... with e = exp(-(t - r)). In terms of w this is
    w_t = K w_r + noise with K = [[a, 0], [b, c]], so that w_r | w_t ~ N(K^T w_t, I - K^T K).
    """
    dtype = t.dtype
    t, r = t.double(), r.double()
    at, before = (Joint.at(time, 0.0, latest, initial_velocity_std) for time in (t, r))
    decay, travelled = torch.exp(r - t), -torch.expm1(r - t)
    a = decay * before.velocity_std / at.velocity_std
    b = before.velocity_std * (before.gain + travelled - decay * at.gain) / at.position_std
    c = before.position_std / at.position_std
    spread_2 = (1 - c.square()).clamp(min=0).sqrt()
    shared = torch.where(spread_2 > 0, -b * c / spread_2, 0.0)
    spread_1 = (1 - a.square() - b.square() - shared.square()).clamp(min=0).sqrt()
    return Posterior(*(values.to(dtype) for values in (a, b, c, spread_1, spread_2, shared)))
