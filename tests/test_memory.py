"""What fits into memory: what networks reckon is enough, and what follows from what is free."""

import weakref
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from kldm import memory
from kldm.execution import Execution, set_execution
from kldm.interfaces import Sizes
from kldm.memory import free_memory, most_pairs
from kldm.model import JointModel, NoisedBatch
from kldm.processes import Given, LogTan, TrivializedTorus, VPEuclidean
from kldm.registry import networks
from kldm.runtime.distributed import World
from kldm.sampling.generation import sampling_pairs
from kldm.training.gradients import Gradients
from tests.oracles import random_crystals
from tests.small import small_model

OURS = [name for name in networks.names() if networks.get(name).__module__.startswith("kldm.")]

CPU = torch.device("cpu")


SIZES = (20,) * 4
PAIRS = 4 * 20 * 19


@attrs.frozen
class Reckoning:
    """A network of so many bytes per pair, four times as many in training."""

    size: int = 1000

    def bytes_per_pair(self, training: bool) -> int:
        return 4 * self.size if training else self.size


class Peak(TorchDispatchMode):
    """The largest sum of bytes that live tensors made within it have held at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.most: int = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor) and (key := value.untyped_storage()._cdata) not in self.known:
                size = value.untyped_storage().nbytes()
                self.known.add(key)
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(value.untyped_storage(), self._gone, key, size)
        return result

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def noised(model: JointModel) -> NoisedBatch:
    crystals = random_crystals(SIZES, 0, torch.float32)
    return model.noised(crystals, torch.rand(len(SIZES)), torch.Generator().manual_seed(0))


def peak(model: JointModel, training: bool) -> int:
    batch, measured = noised(model), Peak()
    with measured, torch.set_grad_enabled(training):
        loss = model.total(model(batch))
        if training:
            loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    return measured.most


@pytest.mark.parametrize("sizes", [{"hidden": 64, "layers": 2, "frequencies": 8}, {"hidden": 32, "layers": 4}], ids=str)
@pytest.mark.parametrize("name", OURS)
def test_a_network_reckons_with_more_than_it_takes_but_not_with_far_more(name: str, sizes: dict[str, int]) -> None:
    """Oracle: the bytes of all live tensors, counted."""
    model = JointModel(
        coordinates=TrivializedTorus(),
        lattice=VPEuclidean(codec=LogTan(standardise=False)),
        species=Given(),
        network=partial(networks.get(name), time_features=8, **sizes),
    )
    assert isinstance(model.network, Sizes)
    for messages in ("manual", "autograd", "plain"):
        set_execution(model.network, Execution(messages=messages))
        for training in (True, False):
            taken = peak(model, training) / PAIRS
            assert 0.2 < taken / model.network.bytes_per_pair(training) < 1.1, (messages, training, taken)


def test_pieces_take_the_memory_of_a_piece() -> None:
    model = small_model(hidden=64, layers=2)
    batch, taken = noised(model), []
    for max_pairs in (None, PAIRS // 4):
        measured = Peak()
        with measured:
            Gradients(model, World(), max_pairs).add(batch)
        taken.append(measured.most)
        model.zero_grad()
    assert taken[1] < 0.5 * taken[0]  # a quarter, and the gradient of the weights


def test_half_of_what_is_free_is_taken_in_powers_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal:       99999 kB\nMemFree:          3 kB\nMemAvailable:    20000 kB\n")
    assert free_memory(CPU) == 20_480_000
    assert most_pairs(Reckoning(), CPU, training=False) == 8192  # of 10,240
    assert most_pairs(Reckoning(), CPU, training=True) == 2048  # of 2,560
    assert most_pairs(Reckoning(), CPU, training=True, processes=2) == 1024  # of which each has half
    assert most_pairs(Reckoning(10**9), CPU, training=True) == 1  # at least one crystal
    assert sampling_pairs(None, Reckoning(), CPU) == 8192
    assert sampling_pairs(None, Reckoning(10), CPU) == 64_000  # enough
    assert sampling_pairs(10**9, Reckoning(), CPU) == 10**9  # as is asked for


@pytest.mark.parametrize("content", [None, "", "MemAvailable: a lot\n", "nonsense"])
def test_without_knowledge_there_is_no_limit(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    if content is not None:
        (tmp_path / "meminfo").write_text(content)
    assert most_pairs(Reckoning(), CPU, training=True) is None
    assert sampling_pairs(None, Reckoning(), CPU) == 64_000
    assert most_pairs(object(), CPU, training=True) is None
    assert free_memory(torch.device("meta")) is None
