from math import inf, pi

import mpmath
import pytest
import torch
from torch import Tensor

from kldm.processes.kinetic import (
    Joint,
    Kernel,
    flow,
    position_variance,
    posterior,
    velocity_score,
    velocity_variance,
)
from kldm.torus import wrapped_normal_score

TIMES = [2e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.4999, 0.5001, 0.7, 1.0, 1.7, 2.0, 10.0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 8e-6)])
@pytest.mark.parametrize("latest", [2.0, inf])
def test_variances_against_fifty_digits(dtype: torch.dtype, tolerance: float, latest: float) -> None:
    t = torch.tensor([time for time in TIMES if time <= latest], dtype=dtype)
    with mpmath.workdps(50):
        exact = [mpmath.mpf(value) for value in t.double().tolist()]
        position = [float(2 * x + 8 / (mpmath.exp(x) + 1) - 4) for x in exact]
        velocity = [float(1 - mpmath.exp(-2 * x)) for x in exact]
    assert position_variance(t, latest=latest).tolist() == pytest.approx(position, rel=tolerance)
    assert velocity_variance(t).tolist() == pytest.approx(velocity, rel=tolerance)
    assert position_variance(t).dtype == dtype


def test_floor_is_added_to_both_variances() -> None:
    kernel = Kernel.at(torch.zeros(1, dtype=torch.float64), 1e-6)
    assert kernel.position_variance.item() == kernel.velocity_variance.item() == 1e-6


@pytest.mark.parametrize("latest", [0.7, 2.0, 3.0])
def test_no_kernel_is_wider_than_the_latest(latest: float) -> None:
    kernel = Kernel.at(torch.tensor([latest / 2, latest], dtype=torch.float64), 1e-6, latest)
    assert kernel.position_std[0] < kernel.widest
    assert kernel.position_std[1].item() == pytest.approx(kernel.widest, rel=1e-14)


@pytest.mark.parametrize("initial", [0.0, 1.3])
@pytest.mark.parametrize("time", [0.05, 0.8, 2.0])
def test_score_is_the_gradient_of_the_log_density_by_the_velocity(initial: float, time: float) -> None:
    rng = torch.Generator().manual_seed(0)
    start = initial * torch.randn(64, generator=rng, dtype=torch.float64)
    kernel = Kernel.at(torch.tensor(time, dtype=torch.float64), 1e-6)
    v = torch.randn(64, generator=rng, dtype=torch.float64).requires_grad_()
    r = 2 * pi * torch.rand(64, generator=rng, dtype=torch.float64) - pi
    if time < 0.1:  # where the density is not a rounding error
        r = (kernel.gain * (v + start)).detach() + kernel.position_variance.sqrt() * r
    images = 2 * pi * torch.arange(-9, 10, dtype=torch.float64)
    distance = (r - kernel.gain * (v + start)).unsqueeze(-1) + images
    log_density = torch.logsumexp(-distance.square() / (2 * kernel.position_variance), -1)
    log_density = log_density - (v - kernel.decay * start).square() / (2 * kernel.velocity_variance)
    (expected,) = torch.autograd.grad(log_density.sum(), v)
    with torch.no_grad():
        g = wrapped_normal_score(r - kernel.gain * (v + start), kernel.position_variance, kernel.widest)
        found = velocity_score(g, v - kernel.decay * start, kernel.gain, kernel.velocity_variance)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def covariance(t: Tensor, initial_velocity_std: float) -> Tensor:
    """Of (v, r) at time t given theta_0, [2, 2], from the moments of the linear SDE."""
    decay, start = torch.exp(-t), initial_velocity_std**2
    vv = 1 - decay**2 + start * decay**2
    rv = (1 - decay) ** 2 + start * decay * (1 - decay)
    rr = 2 * t - 3 + 4 * decay - decay**2 + start * (1 - decay) ** 2
    return torch.stack([torch.stack([vv, rv]), torch.stack([rv, rr])])


def factor(t: Tensor, latest: float, initial_velocity_std: float) -> Tensor:
    """(v, r) = L (w_1, w_2), [2, 2]."""
    gain, velocity_std, position_std = Joint.at(t, 0.0, latest, initial_velocity_std)
    zero = torch.zeros_like(t)
    return torch.stack([torch.stack([velocity_std, zero]), torch.stack([gain * velocity_std, position_std])])


SPANS = [(1.5, 0.4, 2.0), (2.9, 2.8, 3.0), (0.3, 0.02, 2.0)]


@pytest.mark.parametrize("initial_velocity_std", [0.0, 0.7])
@pytest.mark.parametrize(("later", "earlier", "latest"), SPANS)
def test_the_joint_law_has_the_moments_of_the_equation(
    later: float, earlier: float, latest: float, initial_velocity_std: float
) -> None:
    for time in (later, earlier):
        t = torch.tensor(time, dtype=torch.float64)
        found = factor(t, latest, initial_velocity_std)
        torch.testing.assert_close(found @ found.T, covariance(t, initial_velocity_std), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("initial_velocity_std", [0.0, 0.7])
@pytest.mark.parametrize(("later", "earlier", "latest"), SPANS)
def test_the_flow_solves_its_equation(later: float, earlier: float, latest: float, initial_velocity_std: float) -> None:
    """Against Runge-Kutta steps of dr = v dt, dv = -v dt + (Sigma^-1 z)_v dt, backwards over log t."""
    t, r = (torch.tensor(time, dtype=torch.float64) for time in (later, earlier))

    def rate(z: Tensor, log_t: Tensor) -> Tensor:
        push = torch.linalg.solve(covariance(log_t.exp(), initial_velocity_std), z)[0]
        return log_t.exp() * torch.stack([push - z[0], z[0]])

    w = torch.tensor([0.7, -0.3], dtype=torch.float64)
    z, place, steps = factor(t, latest, initial_velocity_std) @ w, t.log(), 400
    h = (r.log() - t.log()) / steps
    for _ in range(steps):
        a = rate(z, place)
        b = rate(z + h / 2 * a, place + h / 2)
        c = rate(z + h / 2 * b, place + h / 2)
        d = rate(z + h * c, place + h)
        z, place = z + h / 6 * (a + 2 * b + 2 * c + d), place + h
    cos, sin = flow(t, r, latest, initial_velocity_std)
    turned = torch.stack([cos * w[0] + sin * w[1], cos * w[1] - sin * w[0]])
    torch.testing.assert_close(factor(r, latest, initial_velocity_std) @ turned, z, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("initial_velocity_std", [0.0, 0.7])
@pytest.mark.parametrize(("later", "earlier", "latest"), SPANS)
def test_the_posterior_is_the_gaussian_conditional(
    later: float, earlier: float, latest: float, initial_velocity_std: float
) -> None:
    t, r = (torch.tensor(time, dtype=torch.float64) for time in (later, earlier))
    decay = torch.exp(r - t)
    moved = torch.stack([torch.stack([decay, torch.zeros_like(t)]), torch.stack([1 - decay, torch.ones_like(t)])])
    before, after = covariance(r, initial_velocity_std), covariance(t, initial_velocity_std)
    gain = before @ moved.T @ torch.linalg.inv(after)
    to, back = factor(t, latest, initial_velocity_std), torch.linalg.inv(factor(r, latest, initial_velocity_std))
    mean, spread = back @ gain @ to, back @ (before - gain @ moved @ before) @ back.T
    a, b, c, spread_1, spread_2, shared = posterior(t, r, latest, initial_velocity_std)
    zero = torch.zeros_like(t)
    torch.testing.assert_close(torch.stack([torch.stack([a, b]), torch.stack([zero, c])]), mean, rtol=1e-5, atol=1e-6)
    root = torch.stack([torch.stack([spread_1, shared]), torch.stack([zero, spread_2])])
    torch.testing.assert_close(root @ root.T, spread, rtol=1e-5, atol=1e-6)
