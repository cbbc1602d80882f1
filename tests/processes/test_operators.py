"""What noise, targets and reverse steps cost on a GPU, where every operator is a kernel that must be launched.

The bounds leave room for three or four operators more; a loop over images would break them by dozens.
"""

import pytest
import torch

from benchmarks.operators import operators
from kldm.crystals import Crystals
from kldm.interfaces import DiffusionProcess, Step
from kldm.processes import Given, LogTan, Matrix, TrivializedTorus, VPEuclidean, WrappedVE
from kldm.torus import score_root_mean_square, wrapped_normal_score
from tests.oracles import random_crystals

CRYSTALS = random_crystals((1, 4, 20, 2), 0, torch.float32)
CELL = VPEuclidean(codec=LogTan(fit={"mean": {"pooled": [1.7, 1.8, 1.9]}, "std": {"pooled": [0.1, 0.2, 0.3]}}))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def noise(*processes: DiffusionProcess, crystals: Crystals = CRYSTALS) -> int:
    s = torch.rand(len(crystals), generator=rng())

    def work() -> None:
        for process in processes:
            process.noise(crystals, s, rng())

    work()  # makes the tables
    return operators(work)


def test_noise_and_targets_of_a_training_step() -> None:
    assert noise(TrivializedTorus()) <= 50
    assert noise(TrivializedTorus(), CELL, Given()) <= 72
    assert noise(WrappedVE(), VPEuclidean(codec=Matrix(), parameterization="eps"), Given()) <= 93


def test_they_do_not_grow_with_the_batch() -> None:
    for process in (TrivializedTorus(), WrappedVE()):
        assert noise(process, crystals=random_crystals((3,) * 40, 0, torch.float32)) == noise(process)


def test_the_target_of_the_coordinates_alone() -> None:
    variance, sigma = torch.full((27, 1), 0.5), torch.full((4,), 0.7)
    g = CRYSTALS.fractional

    def work() -> None:
        score = CRYSTALS.layout.centred(wrapped_normal_score(g, variance, 0.98))
        torch.div(score, *CRYSTALS.layout.columns(score_root_mean_square(sigma, 0.98)))

    work()
    assert operators(work) <= 25


@pytest.mark.parametrize(
    ("process", "move", "most"),
    [
        (TrivializedTorus(), "denoise", 52),
        (TrivializedTorus(), "predict", 50),
        (TrivializedTorus(), "correct", 55),
        (CELL, "denoise", 28),
        (CELL, "predict", 26),
        (CELL, "correct", 29),
        (WrappedVE(), "denoise", 35),
        (WrappedVE(), "correct", 30),
    ],
)
def test_reverse_steps(process: TrivializedTorus | VPEuclidean | WrappedVE, move: str, most: int) -> None:
    layout = CRYSTALS.layout
    s, r = torch.tensor(0.6).expand(len(layout)), torch.tensor(0.5).expand(len(layout))
    step = Step(s, r, s, layout, rng())
    noised = process.noise(CRYSTALS, s, rng())

    work = process.moves[move]
    work(noised.latent, noised.target, step)
    assert operators(lambda: work(noised.latent, noised.target, step)) <= most
