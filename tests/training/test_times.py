"""Training times: their range, their density, and that drawing them never waits for a device."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kldm.runtime.seeding import seeded
from kldm.training.times import Draw, Times
from tests.synchronisation import DEVICES, META, generator, unsynchronised

CPU = torch.device("cpu")
DRAWS: tuple[Draw, ...] = ("independent", "stratified")


def drawn(count: int, seed: int = 0, *, draw: Draw = "independent", density: Any = (), s_min: float = 1e-3) -> Tensor:
    return Times(s_min, draw, density, CPU)(count, seeded(CPU, seed))


def test_independent_times_are_those_of_old() -> None:
    """The times of runs that were made when no others could be chosen."""
    old = 1.0 - (1.0 - 1e-3) * torch.rand(100, generator=seeded(CPU, 3))
    assert torch.equal(drawn(100, 3), old)


@given(st.integers(1, 300), st.integers(0, 100), st.sampled_from([1e-3, 0.3]))
def test_one_time_in_each_stratum(count: int, seed: int, s_min: float) -> None:
    s = drawn(count, seed, draw="stratified", s_min=s_min).double()
    share = (1 - s) / (1 - s_min) * count  # of stratum i in [i, i + 1)
    stratum = torch.arange(count)
    assert bool((share > stratum - 1e-3).all())
    assert bool((share < stratum + 1 + 1e-3).all())


@given(st.integers(1, 50), st.integers(0, 100), st.lists(st.floats(1e-3, 1e3), max_size=6), st.sampled_from(DRAWS))
def test_no_time_outside(count: int, seed: int, density: list[float], draw: Draw) -> None:
    s = drawn(count, seed, draw=draw, density=density, s_min=0.01)
    assert bool((s >= 0.01 - 1e-6).all())
    assert bool((s <= 1).all())


@pytest.mark.parametrize("draw", DRAWS)
def test_as_often_as_the_density_says(draw: Draw) -> None:
    """Each half of a bin is drawn equally often."""
    density, count, s_min = torch.tensor([4.0, 1.0, 1.0, 2.0]), 40_000, 0.2
    s = drawn(count, draw=draw, density=density.tolist(), s_min=s_min)
    halves = ((s - s_min) / (1 - s_min) * 8).long().clamp(0, 7)
    share = torch.bincount(halves, minlength=8) / count
    torch.testing.assert_close(share, (density / density.sum() / 2).repeat_interleave(2), rtol=0, atol=0.01)


def test_a_density_of_one_height_is_none() -> None:
    torch.testing.assert_close(drawn(1000, density=[2.0] * 7), drawn(1000), rtol=0, atol=1e-6)


def test_stratified_means_have_less_noise() -> None:
    """The means of s^2 over batches of 16 vary less with stratified times."""

    def spread(draw: Draw) -> float:
        means = torch.stack([(drawn(16, seed, draw=draw, s_min=1e-6) ** 2).mean() for seed in range(200)])
        assert abs(float(means.mean()) - 1 / 3) < 0.02
        return float(means.std())

    assert spread("stratified") < 0.1 * spread("independent")


@pytest.mark.parametrize("device", DEVICES)
def test_does_not_wait_for_the_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(1e-3, "stratified", (1.0, 2.0, 3.0), torch.device(device))
    rng = generator(device)
    if device == META:  # which has no generators
        monkeypatch.setattr(torch, "rand", lambda count, **_: torch.empty(count, device=META))
    with unsynchronised(device):
        assert times(8, rng).shape == (8,)


def test_weights_make_any_mean_over_times_that_of_uniform_times() -> None:
    times = Times(0.1, "stratified", (1.0, 4.0, 0.5, 2.0), torch.device("cpu"))
    s = times(200_000, torch.Generator().manual_seed(0))
    weight = times.weight(s)
    assert float(weight.mean()) == pytest.approx(1.0, abs=1e-3)
    uniform = torch.linspace(0.1, 1, 100_001)
    assert float((weight * s.square()).mean()) == pytest.approx(float(uniform.square().mean()), abs=2e-3)
    plain = Times(0.1, "independent", (), torch.device("cpu"))
    assert (plain.weight(s) == 1).all()
