"""Samplers driven by the exact score of laws with width: samples have its width and the weights of its modes, or a
known other one."""

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
    one = random_crystals((size,), seed)
    layout = Layout.of((size,) * count)
    return Crystals(one.fractional.repeat(count, 1), one.lattice.repeat(count, 1), one.species.repeat(count), layout)


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
    made = sampler.sample(oracle, truth, torch.Generator().manual_seed(2))
    residual = truth.layout.centred(aligned_residual(made.fractional * TURN, truth.fractional * TURN, truth.layout))
    codec = LogTan(standardise=False)
    cells = codec.encode(made) - codec.encode(truth)
    return float(residual.square().mean().sqrt() * (SIZE / (SIZE - 1)) ** 0.5), float(cells.square().mean().sqrt())


@pytest.mark.parametrize(
    ("sampler", "processes", "positions", "lattice"),
    [PLACEHOLDER],
)
def test_samples_are_as_wide_as_the_law(
    sampler: Sampler, processes: dict[str, DiffusionProcess], positions: float, lattice: float
) -> None:
    found = widths(sampler, processes)
    assert found[0] == pytest.approx(positions, rel=0.05)
    assert found[1] == pytest.approx(lattice, rel=0.08)
