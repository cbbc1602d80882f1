from math import pi

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kldm.torus import score_root_mean_square, unit, wrap, wrapped_normal_score

SIGMAS = [1e-3, 1e-2, 0.1, 0.3, 0.5, 1.0, 1.23, 2.0, 2.4999, 2.5001, 3.0, 4.0]


def _density(x: mpmath.mpf, sigma: float, images: int = 12) -> mpmath.mpf:
    return mpmath.fsum(mpmath.exp(-(((x + 2 * mpmath.pi * k) / sigma) ** 2) / 2) for k in range(-images, images + 1))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_is_the_derivative_of_the_log_density(sigma: float) -> None:
    with mpmath.workdps(50):
        for x in (-3.1, -0.7 * sigma, 1e-4, 0.9 * sigma, 2.0, 3.14):
            step = mpmath.mpf(sigma) * mpmath.mpf("1e-12")
            up, down = (mpmath.log(_density(mpmath.mpf(x) - d, sigma)) for d in (step, -step))
            expected = float((up - down) / (2 * step))
            found = wrapped_normal_score(
                torch.tensor([x], dtype=torch.float64), torch.tensor([sigma**2], dtype=torch.float64)
            )
            assert found.item() == pytest.approx(expected, rel=1e-7, abs=1e-10)


def test_score_of_tiny_variance_is_finite_even_halfway_between_images() -> None:
    x = torch.tensor([0.0, 1e-3, pi, -pi, 3.0])
    score = wrapped_normal_score(x, torch.tensor(1e-30))
    assert torch.isfinite(score).all()
    assert score[0] == 0
    assert score[4] == pytest.approx(3e30, rel=1e-5)


def test_score_is_periodic_and_odd_and_broadcasts_its_variance() -> None:
    x = torch.linspace(-3, 3, 31, dtype=torch.float64)
    variance = torch.tensor([[0.01], [0.5], [4.0]], dtype=torch.float64)
    score = wrapped_normal_score(x, variance)
    assert score.shape == (3, 31)
    torch.testing.assert_close(wrapped_normal_score(x + 4 * pi, variance), score, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(wrapped_normal_score(-x, variance), -score, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.05, 0.31, 1.23, 3.0])
def test_mean_square_is_the_integral_of_the_squared_score(sigma: float) -> None:
    def integrand(x: mpmath.mpf) -> mpmath.mpf:
        slope = mpmath.fsum(
            (x + 2 * mpmath.pi * k) / sigma**2 * mpmath.exp(-(((x + 2 * mpmath.pi * k) / sigma) ** 2) / 2)
            for k in range(-4, 5)
        )
        return slope**2 / _density(x, sigma, 4)

    with mpmath.workdps(20):
        knots = [0, *(k * sigma for k in (2, 4, 8) if k * sigma < 3), mpmath.pi]
        expected = mpmath.quad(integrand, knots, maxdegree=4)
        expected /= mpmath.quad(lambda x: _density(x, sigma, 4), knots, maxdegree=4)
    found = score_root_mean_square(torch.tensor(sigma, dtype=torch.float64)).item()
    assert found**2 == pytest.approx(float(expected), rel=1e-6)


def test_mean_square_has_its_limits_and_no_jump_where_they_take_over() -> None:
    small = torch.tensor([1e-3, 0.05, 0.2], dtype=torch.float64)
    torch.testing.assert_close(score_root_mean_square(small), 1 / small, rtol=1e-12, atol=0.0)
    below, above = score_root_mean_square(torch.tensor([4.5, 4.5 + 1e-12], dtype=torch.float64)).tolist()
    assert above == pytest.approx(below, rel=5e-9)


def test_mean_square_follows_the_dtype_and_falls_with_sigma() -> None:
    sigma = torch.logspace(-4, 0.9, 400)
    found = score_root_mean_square(sigma)
    assert found.dtype == torch.float32
    assert (found[1:] < found[:-1]).all()
    torch.testing.assert_close(found, score_root_mean_square(sigma.double()).float(), rtol=1.5e-6, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("widest", [0.97, 1.26, 3.1, 4.5, 6.2])
def test_a_bound_on_the_width_changes_nothing_within_it(widest: float, dtype: torch.dtype) -> None:
    """1.26^2 is just below where three images stop to do, 4.5 the end of the grid of n."""
    sigma = torch.linspace(1e-4, widest, 301, dtype=torch.float64).to(dtype).unsqueeze(-1)
    torch.testing.assert_close(score_root_mean_square(sigma, widest), score_root_mean_square(sigma), rtol=0.0, atol=0.0)
    x, variance = torch.linspace(-3.2, 3.2, 200, dtype=dtype), sigma.square()
    found, expected = wrapped_normal_score(x, variance, widest), wrapped_normal_score(x, variance)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("variance", [1.0, 1.59999, 1.60001, 2.5])
def test_images_and_waves_meet(variance: float) -> None:
    """Against nineteen images, on either side of the variance where the one takes over from the other."""
    x = torch.linspace(-pi, pi, 801, dtype=torch.float64)
    images = x.unsqueeze(-1) + 2 * pi * torch.arange(-9, 10, dtype=torch.float64)
    expected = (torch.softmax(images.square() / (-2 * variance), -1) * images).sum(-1) / variance
    found = wrapped_normal_score(x, torch.tensor(variance, dtype=torch.float64))
    assert (found - expected).abs().max() < 1e-10


@given(st.floats(-1e4, 1e4), st.sampled_from([torch.float32, torch.float64]))
def test_wrap_and_unit_stay_in_their_half_open_intervals(value: float, dtype: torch.dtype) -> None:
    x = torch.tensor([value, -value, value * 1e-12], dtype=dtype)
    angle, fraction = wrap(x), unit(x)
    assert (angle >= -pi).all()
    assert (angle < pi).all()
    assert (fraction >= 0).all()
    assert (fraction < 1).all()
    tolerance = 2e-3 if dtype == torch.float32 else 1e-10
    assert ((angle - x).div(2 * pi) - (angle - x).div(2 * pi).round()).abs().max() < tolerance
    assert ((fraction - x) - (fraction - x).round()).abs().max() < tolerance


def test_wrap_puts_half_a_period_at_the_lower_end() -> None:
    assert wrap(torch.tensor([0.5, -0.5, 1.25, 0.49]), 1.0).tolist() == pytest.approx([-0.5, -0.5, 0.25, 0.49])
    assert unit(torch.tensor([-1e-9], dtype=torch.float32)).item() == 0
