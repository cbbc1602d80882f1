"""DiffCSP's and EquiCSP's processes and sampler, driven by networks that know the answer."""

from collections.abc import Mapping

import attrs
import pytest
import torch

from kldm.crystals import Crystals, Layout
from kldm.interfaces import DiffusionProcess, Sampler
from kldm.processes import Cosine, Given, LogTan, VPEuclidean, WrappedVE, com_free_ve
from kldm.samplers import AnnealedLangevin, EulerMaruyama, PredictorCorrector, ProbabilityFlow
from tests.oracles import Oracle, random_crystals, translation_free_rms

COORDINATES: Mapping[str, WrappedVE] = {
    "wrapped": WrappedVE(),
    "no_net_translation": WrappedVE(zero_net_translation=True),
    "com_free": com_free_ve(),
}
SAMPLERS: Mapping[str, Sampler] = {
    "annealed": AnnealedLangevin(steps=100),
    "annealed_twice": AnnealedLangevin(steps=100, corrections=2),
    "em": EulerMaruyama(steps=100, euclidean="exponential"),
    "pc": PredictorCorrector(steps=100),
    "flow": ProbabilityFlow(steps=100),
}


def processes(coordinates: WrappedVE) -> dict[str, DiffusionProcess]:
    cell = VPEuclidean(codec=LogTan(standardise=False), schedule=Cosine(), parameterization="eps")
    return {"coordinates": coordinates, "lattice": cell, "species": Given()}


def sample(sampler: Sampler, coordinates: WrappedVE, candidates: tuple[Crystals, ...], seed: int) -> Crystals:
    oracle = Oracle(processes(coordinates), candidates)
    sampler.check(oracle.processes)
    return sampler.sample(oracle, candidates[0], torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_every_sampler_returns_the_crystal(coordinates: str, name: str) -> None:
    """To the last digits, as the step to r = 0 takes all noise away."""
    truth = random_crystals((8,) * 8, seed=1)
    result = sample(SAMPLERS[name], COORDINATES[coordinates], (truth,), seed=2)
    torch.testing.assert_close(result.lattice, truth.lattice, rtol=0.01, atol=0.0)
    assert translation_free_rms(result.fractional, truth.fractional, truth.layout).max() < 1e-6


@pytest.mark.parametrize("coordinates", ["wrapped", "com_free"])
@pytest.mark.parametrize("s_min", [0.1, 0.5])
@pytest.mark.parametrize("step_lr", [5e-7, 1e-5])
def test_noise_at_an_earlier_end_is_that_of_the_level(coordinates: str, s_min: float, step_lr: float) -> None:
    """The variance V of a level, in units of sigma^2, after a correction (1 - a)^2 V + 2 a, a = step_lr / sigma_min^2,
    and the ancestral step with q = sigma_r^2 / sigma_s^2 is q (...) + 1 - q: it settles at 1.00 and 1.22.
    """
    process = attrs.evolve(COORDINATES[coordinates], step_lr=step_lr)
    share, q = step_lr / process.sigma_min**2, 100 ** (-2 * (1 - s_min) / 100)
    settled = ((2 * share * q + 1 - q) / (1 - q * (1 - share) ** 2)) ** 0.5
    truth = random_crystals((8,) * 300, seed=3)
    result = sample(AnnealedLangevin(steps=100, s_min=s_min), process, (truth,), seed=4)
    rms = translation_free_rms(result.fractional, truth.fractional, truth.layout).square().mean().sqrt()
    expected = settled * float(process.sigma(torch.tensor(s_min, dtype=torch.float64))) * (3 * 7 / 8) ** 0.5
    assert rms.item() == pytest.approx(expected, rel=0.03)


def two(count: int, size: int = 3) -> tuple[Crystals, Crystals]:
    """Two crystals of ``size`` atoms, unlike in their positions alone."""
    one, other = (random_crystals((size,), seed=seed) for seed in (10, 11))
    layout = Layout.of((size,) * count)
    cells, species = one.lattice.repeat(count, 1), one.species.repeat(count)
    first, second = (Crystals(c.fractional.repeat(count, 1), cells, species, layout) for c in (one, other))
    return first, second


def assert_halves(sampler: Sampler, coordinates: WrappedVE, count: int, tolerance: float) -> None:
    truths = two(count)
    result = sample(sampler, coordinates, truths, seed=5)
    near, far = (translation_free_rms(result.fractional, truth.fractional, truth.layout) < 0.05 for truth in truths)
    assert float((near | far).double().mean()) > 0.98
    assert abs(float(near.double().mean()) - 0.5) < tolerance


@pytest.mark.parametrize("coordinates", ["wrapped", "com_free"])
def test_two_crystals_come_in_equal_parts(coordinates: str) -> None:
    """Three standard deviations of 200 draws."""
    assert_halves(AnnealedLangevin(steps=40), COORDINATES[coordinates], 200, 0.106)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("coordinates", ["wrapped", "com_free"])
def test_two_crystals_come_in_equal_parts_from_every_sampler(coordinates: str, name: str) -> None:
    """Three standard deviations of 400 draws."""
    assert_halves(SAMPLERS[name], COORDINATES[coordinates], 400, 0.075)
