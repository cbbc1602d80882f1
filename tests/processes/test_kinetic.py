from math import inf, pi

import mpmath
import pytest
import torch

from kldm.processes.kinetic import Kernel, position_variance, velocity_score, velocity_variance
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
