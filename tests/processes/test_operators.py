"""What noise and targets cost on a GPU, where every operator is a kernel that must be launched."""

import torch

from benchmarks.operators import operators
from kldm.crystals import Crystals
from kldm.interfaces import DiffusionProcess
from kldm.processes import TrivializedTorus, WrappedVE
from tests.oracles import random_crystals


def noise(process: DiffusionProcess, crystals: Crystals) -> int:
    s = torch.rand(len(crystals), generator=torch.Generator().manual_seed(0))

    def work() -> None:
        process.noise(crystals, s, torch.Generator().manual_seed(0))

    work()  # makes the tables
    return operators(work)


def test_no_loop_over_images_and_none_over_crystals() -> None:
    """A formula of its own for every image of an atom would be hundreds, one for every crystal thousands."""
    for process in (TrivializedTorus(), WrappedVE()):
        few = noise(process, random_crystals((1, 4, 20, 2), 0, torch.float32))
        assert few == noise(process, random_crystals((3,) * 40, 0, torch.float32))
        assert few < 100
