"""Samplers driven by the exact score of laws with width: samples have its width and the weights of its modes, or a
known other one."""

from itertools import pairwise

import attrs
import pytest
import torch

from kldm.crystals import Crystals, Layout
from kldm.interfaces import DiffusionProcess, Sampler
from kldm.processes import Cosine, Given, LogTan, TrivializedTorus, VPEuclidean, WrappedVE
from kldm.samplers import AnnealedLangevin, EulerMaruyama, PredictorCorrector, ProbabilityFlow, X0Flow
from tests.oracles import TURN, Oracle, aligned_residual, random_crystals, translation_free_rms

WIDTH = 0.25
SIZE = 8


def crystals(seed: int, count: int, size: int = SIZE) -> Crystals:
    """So many times the same crystal."""
    crystal = random_crystals((size,), seed)
    layout = Layout.of((size,) * count)
    return Crystals(
        crystal.fractional.repeat(count, 1), crystal.lattice.repeat(count, 1), crystal.species.repeat(count), layout
    )


def kldm(horizon: float = 2.0) -> dict[str, DiffusionProcess]:
    lattice = VPEuclidean(codec=LogTan(standardise=False))
    return {"coordinates": TrivializedTorus(horizon=horizon), "lattice": lattice, "species": Given()}


def diffcsp() -> dict[str, DiffusionProcess]:
    lattice = VPEuclidean(codec=LogTan(standardise=False), schedule=Cosine(), parameterization="eps")
    return {"coordinates": WrappedVE(), "lattice": lattice, "species": Given()}


def widths(sampler: Sampler, processes: dict[str, DiffusionProcess], count: int = 150) -> tuple[float, float]:
    """Standard deviation of the samples' angles, in radians, and of the lattice's numbers."""
    truth = crystals(1, count)
    oracle = Oracle(processes, (truth,), width=WIDTH)
    sampler.check(processes)
    samples = sampler.sample(oracle, truth, torch.Generator().manual_seed(2))
    residual = truth.layout.centred(aligned_residual(samples.fractional * TURN, truth.fractional * TURN, truth.layout))
    codec = LogTan(standardise=False)
    cells = codec.encode(samples) - codec.encode(truth)
    return float(residual.square().mean().sqrt() * (SIZE / (SIZE - 1)) ** 0.5), float(cells.square().mean().sqrt())


FEW = {"coordinates": 4.0}


@pytest.mark.parametrize(
    ("sampler", "processes", "positions", "lattice"),
    [
        pytest.param(EulerMaruyama(steps=400), kldm(3.0), WIDTH, WIDTH, id="em"),
        pytest.param(
            EulerMaruyama(steps=400, euclidean="exponential", land=True), kldm(3.0), WIDTH, WIDTH, id="landed"
        ),
        pytest.param(ProbabilityFlow(steps=200), kldm(3.0), WIDTH, WIDTH, id="flow"),
        pytest.param(
            PredictorCorrector(steps=100, step_size="expected", correct_positions=False),
            kldm(3.0),
            WIDTH,
            WIDTH,
            id="pc_expected",
        ),
        pytest.param(X0Flow(steps=200), kldm(3.0), WIDTH, WIDTH, id="x0_flow"),
        pytest.param(X0Flow(steps=200, rho=2.0), kldm(3.0), WIDTH, WIDTH, id="x0_flow_unequal"),
        pytest.param(X0Flow(steps=500, stochastic=True), kldm(3.0), WIDTH, WIDTH, id="x0_draw"),
        pytest.param(AnnealedLangevin(steps=100), diffcsp(), WIDTH, WIDTH, id="diffcsp"),
        pytest.param(EulerMaruyama(steps=200, euclidean="exponential"), diffcsp(), WIDTH, WIDTH, id="diffcsp_em"),
        pytest.param(ProbabilityFlow(steps=200), diffcsp(), WIDTH, WIDTH, id="diffcsp_flow"),
        pytest.param(X0Flow(steps=200), diffcsp(), WIDTH, WIDTH, id="diffcsp_x0_flow"),
        pytest.param(X0Flow(steps=200, stochastic=True), diffcsp(), WIDTH, WIDTH, id="diffcsp_x0_draw"),
    ],
)
def test_samples_are_as_wide_as_the_law(
    sampler: Sampler, processes: dict[str, DiffusionProcess], positions: float, lattice: float
) -> None:
    found = widths(sampler, processes)
    assert found[0] == pytest.approx(positions, rel=0.07)
    assert found[1] == pytest.approx(lattice, rel=0.09)


@pytest.mark.parametrize(
    ("sampler", "positions", "lattice"),
    [
        pytest.param(PredictorCorrector(steps=100), 0.27, 0.31, id="published"),
        pytest.param(PredictorCorrector(steps=100, correct_positions=False), 0.30, 0.31, id="positions_still"),
        pytest.param(PredictorCorrector(steps=100, step_size="expected"), 0.32, 0.25, id="expected"),
        pytest.param(PredictorCorrector(steps=100, order="predict_then_correct"), 0.27, 0.25, id="paper"),
        pytest.param(X0Flow(steps=10, over=FEW), 0.004, 0.13, id="over"),
    ],
)
def test_samplers_that_do_not_sample_the_law(sampler: Sampler, positions: float, lattice: float) -> None:
    """At the paper's horizon; the numbers are measured, and what the docstrings speak of."""
    found = widths(sampler, kldm())
    assert found[0] == pytest.approx(positions, rel=0.1, abs=0.002)
    assert found[1] == pytest.approx(lattice, rel=0.1)


def test_steps_that_hold_the_estimate_are_of_first_order() -> None:
    """The missing width halves with twice the steps."""
    missing = [WIDTH - widths(X0Flow(steps=steps), kldm(), count=400)[0] for steps in (10, 20, 40)]
    for coarse, fine in pairwise(missing):
        assert 1.4 < coarse / fine < 2.8


def shares(sampler: Sampler, processes: dict[str, DiffusionProcess], count: int = 600) -> tuple[float, float]:
    """Of samples of a law of two crystals of three atoms, with the weights 0.7 and 0.3, the share near each."""
    one, other = (crystals(seed, count, 3) for seed in (10, 11))
    other = attrs.evolve(other, species=one.species, lattice=one.lattice)
    oracle = Oracle(processes, (one, other), weights=(0.7, 0.3))
    samples = sampler.sample(oracle, one, torch.Generator().manual_seed(5))
    near, far = (
        float((translation_free_rms(samples.fractional, truth.fractional, truth.layout) < 0.05).double().mean())
        for truth in (one, other)
    )
    return near, far


@pytest.mark.parametrize(
    ("sampler", "processes", "first"),
    [
        pytest.param(EulerMaruyama(steps=100, euclidean="exponential"), kldm(3.0), 0.70, id="em"),
        pytest.param(ProbabilityFlow(steps=60), kldm(3.0), 0.70, id="flow"),
        pytest.param(X0Flow(steps=10), kldm(3.0), 0.70, id="x0_flow"),
        pytest.param(X0Flow(steps=60, stochastic=True), kldm(3.0), 0.70, id="x0_draw"),
        pytest.param(X0Flow(steps=40), diffcsp(), 0.70, id="diffcsp_x0_flow"),
        # Known exceptions. At a horizon of 2 the law at s = 1 is not the prior; over takes away more than the noise.
        pytest.param(EulerMaruyama(steps=100, euclidean="exponential"), kldm(2.0), 0.63, id="em_horizon_2"),
        pytest.param(X0Flow(steps=40), kldm(2.0), 0.59, id="x0_flow_horizon_2"),
        pytest.param(X0Flow(steps=10, over=FEW), kldm(3.0), 0.82, id="over"),
        pytest.param(PredictorCorrector(steps=50), kldm(3.0), 0.65, id="published_pc"),
    ],
)
def test_two_crystals_come_with_their_weights(
    sampler: Sampler, processes: dict[str, DiffusionProcess], first: float
) -> None:
    """Within three standard deviations of 600 draws."""
    near, far = shares(sampler, processes)
    assert near + far > 0.9
    assert near == pytest.approx(first, abs=0.056)
