from math import log, pi

import attrs
import pytest
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.errors import KldmError
from kldm.interfaces import Correction, Step
from kldm.processes import WrappedVE
from tests.oracles import random_crystals


def _gas(particles: int) -> Crystals:
    """Many independent particles that all start at f = 0.3."""
    layout = Layout.of([particles])
    fractional = torch.full((particles, 3), 0.3, dtype=torch.float64)
    return Crystals(fractional, torch.ones(1, 6, dtype=torch.float64), torch.ones(particles, dtype=torch.int64), layout)


def _time(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _log_density(x: Tensor, sigma: float) -> Tensor:
    """Of the wrapped normal on the circle of period 1, as DiffCSP writes it."""
    k = torch.arange(-8, 9, dtype=torch.float64)
    return torch.logsumexp(-((x.unsqueeze(-1) + k) / sigma).square() / 2, -1) - log(sigma * (2 * pi) ** 0.5)


def _slope(x: Tensor, sigma: float) -> Tensor:
    """Its derivative by x, by central differences."""
    h = 1e-5 * sigma
    return (_log_density(x + h, sigma) - _log_density(x - h, sigma)) / (2 * h)


def _displacement(fractional: Tensor, start: Tensor) -> Tensor:
    return torch.remainder(fractional - start + 0.5, 1.0) - 0.5


@pytest.mark.parametrize("s", [0.05, 0.5, 0.8, 0.9, 1.0])
def test_target_is_the_slope_of_the_log_density_over_its_root_mean_square(s: float) -> None:
    process, gas = WrappedVE(), _gas(500)
    sigma = 0.005 ** (1 - s) * 0.5**s
    noised = process.noise(gas, _time(s), _seeded(0))
    x = torch.linspace(-0.5, 0.5, 4001, dtype=torch.float64)[:-1]
    mean_square = (_log_density(x, sigma).exp() * _slope(x, sigma).square()).mean()
    expected = _slope(_displacement(noised.latent["fractional"], gas.fractional), sigma) / mean_square.sqrt()
    torch.testing.assert_close(noised.target["displacement"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("s", [0.2, 0.7, 0.9, 1.0])
def test_noise_is_wrapped_normal(s: float) -> None:
    """E cos 2 pi m d = exp(-2 pi^2 m^2 sigma^2) and E sin = 0; the target has unit size."""
    gas = _gas(40_000)
    noised = WrappedVE().noise(gas, _time(s), _seeded(1))
    angle = 2 * pi * _displacement(noised.latent["fractional"], gas.fractional)
    sigma = 0.005 * 100**s
    for wave in (1, 2, 3):
        expected = torch.exp(torch.tensor(-2.0 * (pi * wave * sigma) ** 2)).item()
        assert torch.cos(wave * angle).mean().item() == pytest.approx(expected, abs=0.01)
        assert torch.sin(wave * angle).mean().item() == pytest.approx(0.0, abs=0.01)
    assert noised.target["displacement"].square().mean().item() == pytest.approx(1.0, rel=0.02)


def _normal_law(process: WrappedVE, x: Tensor, s: float) -> dict[str, Tensor]:
    """What a network answers for the narrow law of standard deviation sigma about 0: S / sqrt(n) = -x / sigma."""
    return {"displacement": -x / (process.sigma_min * (process.sigma_max / process.sigma_min) ** s)}


def _widened(s: float, r: float, seed: int, width: float) -> tuple[WrappedVE, Tensor, Step, dict[str, Tensor]]:
    """100,000 particles about 0.3, of standard deviation ``width`` times sigma(s), the answer and a step."""
    process, gas = WrappedVE(), _gas(100_000)
    x = width * process.sigma(_time(s)) * torch.randn(100_000, 3, generator=_seeded(seed), dtype=torch.float64)
    return process, x, Step(_time(s), _time(r), _time(s), gas.layout, _seeded(seed + 1)), _normal_law(process, x, s)


def test_ancestral_steps_draw_from_the_posterior() -> None:
    """x_r = (sigma_r / sigma_s)^2 x_s + sqrt(sigma_r^2 (sigma_s^2 - sigma_r^2) / sigma_s^2) eps."""
    process, x, step, output = _widened(0.5, 0.4, 2, 1.0)
    before, after = 0.05, 0.005 * 100**0.4
    moved = process.denoise({"fractional": (x + 0.3) % 1}, output, step)["fractional"]
    noise = _displacement(moved, torch.tensor(0.3, dtype=x.dtype)) - (after / before) ** 2 * x
    expected = after * (1 - (after / before) ** 2) ** 0.5
    assert noise.mean().item() == pytest.approx(0.0, abs=5 * expected / x.numel() ** 0.5)
    assert noise.std().item() == pytest.approx(expected, rel=0.01)


def test_the_flow_scales_a_normal_law_exactly() -> None:
    process, x, step, output = _widened(0.5, 0.2, 4, 1.0)
    for move in (process.moves["flow"], process.moves["predict"]):
        moved = move({"fractional": (x + 0.3) % 1}, output, step)["fractional"]
        scaled = 100 ** (-0.3) * x
        torch.testing.assert_close(moved, (scaled + 0.3) % 1, rtol=0.0, atol=1e-12)


def test_the_step_that_ends_at_zero_takes_all_noise_away() -> None:
    process, x, step, output = _widened(0.1, 0.0, 6, 1.0)
    for move in (process.denoise, process.flow):
        moved = move({"fractional": (x + 0.3) % 1}, output, step)["fractional"]
        torch.testing.assert_close(moved, torch.full_like(x, 0.3), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("s", [0.0, 0.3, 0.5])
def test_correction_is_a_langevin_move_of_the_length_that_step_lr_gives(s: float) -> None:
    """x <- (1 - a) x + sqrt(2 a) sigma eps, a = step_lr / sigma_min^2: the same share at every level."""
    process, x, step, output = _widened(s, 0.1, 8, 1.0)
    step = attrs.evolve(step, s=_time(s + 0.2))  # the time of the call counts, not the start of the step
    share, sigma = 1e-5 / 0.005**2, 0.005 * 100**s
    moved = process.correct({"fractional": (x + 0.3) % 1}, output, attrs.evolve(step, correction=Correction(tau=1e9)))[
        "fractional"
    ]
    noise = _displacement(moved, torch.tensor(0.3, dtype=x.dtype)) - (1 - share) * x
    assert noise.std().item() == pytest.approx((2 * share) ** 0.5 * sigma, rel=0.01)


def test_corrections_settle_at_the_law_of_their_level() -> None:
    """The variance of x <- (1 - a) x + sqrt(2 a) sigma eps settles at sigma^2 / (1 - a / 2), a = 0.4 by default."""
    process, x, step, _ = _widened(0.5, 0.4, 10, 3.0)
    for _ in range(15):
        output = _normal_law(process, x, 0.5)
        moved = process.correct({"fractional": (x + 0.3) % 1}, output, step)["fractional"]
        x = _displacement(moved, torch.tensor(0.3, dtype=x.dtype))
    assert x.std().item() == pytest.approx(0.05 / (1 - 0.2) ** 0.5, rel=0.01)


def test_no_noise_in_the_correction_before_the_end() -> None:
    process, x, step, output = _widened(0.001, 0.0, 12, 1.0)
    moved = process.correct({"fractional": (x + 0.3) % 1}, output, step)["fractional"]
    torch.testing.assert_close(moved, 0.6 * x + 0.3, rtol=0.0, atol=1e-12)


def test_without_net_translation_no_reverse_move_translates_a_crystal() -> None:
    """The forward noise does: projected, it would not be that of independent wrapped normals, as the target is."""
    crystals, process = random_crystals((1, 3, 20), 1), WrappedVE(zero_net_translation=True)
    s = torch.tensor([0.5, 0.3, 0.1], dtype=torch.float64)
    noised = process.noise(crystals, s, _seeded(0))
    assert torch.equal(noised.latent["fractional"], WrappedVE().noise(crystals, s, _seeded(0)).latent["fractional"])
    assert crystals.layout.mean(noised.target["displacement"]).abs().max() < 1e-12
    pushed = {"displacement": torch.randn(24, 3, generator=_seeded(1), dtype=torch.float64) + 5}
    step = Step(s, s / 2, s, crystals.layout, _seeded(2))
    for after in (
        process.denoise(noised.latent, pushed, step),
        process.flow(noised.latent, pushed, step),
        process.correct(noised.latent, pushed, step),
    ):
        moved = _displacement(after["fractional"], noised.latent["fractional"])
        assert crystals.layout.mean(moved).abs().max() < 1e-12
        assert moved.abs().max() > 1e-3
    shifted = {"displacement": noised.target["displacement"] + 3}
    assert process.loss(shifted, noised, s, crystals.layout).item() < 1e-20
    assert WrappedVE().loss(shifted, noised, s, crystals.layout).item() == pytest.approx(9.0)


def test_float32_follows_float64_at_every_level() -> None:
    crystals = random_crystals((2, 9), 3)
    single = random_crystals((2, 9), 3, torch.float32)
    output = torch.randn(11, 3, generator=_seeded(0), dtype=torch.float64)
    process = WrappedVE(sigma_max=1.0)
    for start, end in ((1.0, 0.999), (0.5, 0.4), (1e-3, 0.0)):
        s, r = torch.full((2,), start, dtype=torch.float64), torch.full((2,), end, dtype=torch.float64)
        exact, found = (
            process.flow(
                {"fractional": c.fractional},
                {"displacement": output.to(c.fractional.dtype)},
                Step(s.to(c.fractional.dtype), r.to(c.fractional.dtype), s, c.layout, _seeded(0)),
            )["fractional"]
            for c in (crystals, single)
        )
        assert found.dtype == torch.float32
        away = exact - crystals.fractional - (found.double() - single.fractional.double())
        assert (away - away.round()).abs().max() < 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {"sigma_min": 0.0},
        {"sigma_min": 0.6},
        {"sigma_max": 1.5},
        {"step_lr": 0.0},
        {"step_lr": 6e-5},
        {"sigma_min": float("nan")},
        {"step_lr": float("nan")},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(KldmError, match=f"^{next(iter(options))}: must be"):
        WrappedVE(**options)  # type: ignore[arg-type]
