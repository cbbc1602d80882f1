import mpmath
import pytest
import torch

from kldm.errors import KldmError
from kldm.interfaces import Schedule
from kldm.processes import Cosine, Linear

BOTH = pytest.mark.parametrize("schedule", [Linear(), Linear(beta_min=1.0, beta_max=1.0), Cosine()])


@BOTH
def test_beta_is_minus_twice_the_slope_of_log_alpha(schedule: Schedule) -> None:
    s = torch.linspace(0.001, 1, 50, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(schedule.alpha(s).log().sum(), s)
    torch.testing.assert_close(schedule.beta(s), -2 * slope, rtol=1e-9, atol=1e-9)


@BOTH
def test_variance_is_preserved_and_noise_grows_from_nothing(schedule: Schedule) -> None:
    s = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha, sigma = schedule.alpha(s), schedule.sigma(s)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(s))
    assert sigma[0] == 0
    assert (sigma[1:] > sigma[:-1]).all()
    assert (alpha > 0).all()
    assert torch.isfinite(schedule.beta(s)).all()


@BOTH
def test_sigma_keeps_its_digits_in_float32(schedule: Schedule) -> None:
    s = torch.tensor([1e-6, 1e-4, 1e-2, 0.5])
    torch.testing.assert_close(schedule.sigma(s).double(), schedule.sigma(s.double()), rtol=2e-6, atol=0.0)


def test_linear_against_fifty_digits() -> None:
    with mpmath.workdps(50):
        s = mpmath.mpf(1e-6)
        expected = float(mpmath.sqrt(1 - mpmath.exp(-(s / 10 + mpmath.mpf("19.9") * s**2 / 2))))
    assert Linear().sigma(torch.tensor(1e-6, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-12)


def test_cosine_is_the_known_one_up_to_its_last_thousandth() -> None:
    s = torch.tensor([0.25, 0.5], dtype=torch.float64)

    def alpha(time: torch.Tensor) -> torch.Tensor:
        return torch.cos((time + 0.008) / 1.008 * torch.pi / 2)

    expected = alpha(s * 0.999) / alpha(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(Cosine().alpha(s), expected)
    assert Cosine().alpha(torch.ones(1)).item() < 2e-3


def test_impossible_rates_are_refused() -> None:
    with pytest.raises(KldmError, match=r"beta_max: must be at least beta_min = 3.0, got 1.0"):
        Linear(beta_min=3.0, beta_max=1.0)
    with pytest.raises(KldmError, match=r"offset: must be between 0 and 1, got 0.0"):
        Cosine(offset=0.0)
