"""Noise through torch.compile: the same numbers, one graph for all batches, and no harm where it fails."""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.operators import compiled_operators, operators
from kldm import compiling
from kldm.compiling import fuse, fused, table
from kldm.crystals import Crystals
from kldm.errors import KldmError
from kldm.interfaces import DiffusionProcess, Noised
from kldm.processes import (
    Given,
    LogTan,
    Matrix,
    TrivializedTorus,
    VPEuclidean,
    WrappedVE,
    analog_bits,
    bits_flow,
    one_hot,
)
from kldm.registry import processes
from tests.conformance.test_processes import build
from tests.oracles import random_crystals
from tests.small import needs_gpu

CELL = VPEuclidean(codec=LogTan(fit={"mean": {"pooled": [1.7, 1.8, 1.9]}, "std": {"pooled": [0.1, 0.2, 0.3]}}))
PROCESSES: dict[str, DiffusionProcess] = {
    **{name: build(name) for name in processes.names()},
    "standardised": CELL,
    "matrix": VPEuclidean(codec=Matrix(), parameterization="eps"),
    "direct": TrivializedTorus(parameterization="direct", initial_velocity_std=0.3),
    "translating": TrivializedTorus(zero_net_translation=False),
    "velocities of bits": bits_flow(parameterization="velocity"),
}


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    def reset() -> None:
        fuse(False)
        compiling.compiled.cache_clear()
        compiling._refused.clear()
        torch._dynamo.reset()

    reset()
    yield
    reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """What is compiled, with a compiler that takes no time: it runs the graph as it is, and takes whole ones alone."""
    found: list[torch.fx.GraphModule] = []

    def note(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    compile_: Callable[..., Any] = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compile_(function, backend=note, fullgraph=True, **options)
    )
    return found


def drawn(process: DiffusionProcess, crystals: Crystals) -> Noised:
    s = torch.rand(len(crystals), generator=torch.Generator().manual_seed(1)).to(crystals.device)
    return process.noise(crystals, s, torch.Generator(crystals.device).manual_seed(2))


def noising(*parts: DiffusionProcess) -> Callable[[], object]:
    """The noise of these processes; their tables are made already."""
    crystals = random_crystals((1, 4, 20, 2), 0, torch.float32)

    def work() -> object:
        return [drawn(process, crystals) for process in parts]

    work()
    return work


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("kldm")]


def same(process: DiffusionProcess, crystals: Crystals, tolerance: float) -> None:
    """That noise and target are the same with and without compiling."""
    plain = drawn(process, crystals)
    fuse(True)
    found = drawn(process, crystals)
    fuse(False)
    for ours, theirs in ((found.latent, plain.latent), (found.target, plain.target)):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PROCESSES)
def test_noise_is_one_graph_for_batches_of_all_sizes(name: str, graphs: list[torch.fx.GraphModule]) -> None:
    for seed, sizes in enumerate([(1, 4, 20, 2), (3, 3), (5, 6, 7, 8, 9, 1), (2,) * 30]):
        same(PROCESSES[name], random_crystals(sizes, seed, torch.float32), 2e-6)
    assert len(graphs) == (name != "given.v1"), "which has one operator: nothing to fuse"
    same(PROCESSES[name], random_crystals((4,), 0, torch.float32), 2e-6)
    assert len(graphs) <= 2, "a batch of a single crystal is a shape of its own"


def test_noise_and_targets_are_about_twenty_kernels() -> None:
    """Of KLDM for crystal structure prediction with the real compiler; 68 operators where it does not work."""
    work = noising(TrivializedTorus(), CELL, Given())
    assert compiled_operators(work) <= 20
    assert operators(work) > 40, "compiling is off again"


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("name", PROCESSES)
def test_noise_with_the_real_compiler(name: str, device: str) -> None:
    for sizes in ((1, 4, 20, 2), (7,)):
        same(PROCESSES[name], random_crystals(sizes, 0, torch.float32).to(device), 5e-6)
    assert not compiling._refused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "most"),
    [
        ((TrivializedTorus(), CELL, one_hot()), 26),
        ((TrivializedTorus(), CELL, analog_bits()), 23),
        ((WrappedVE(), PROCESSES["matrix"], Given()), 23),
    ],
    ids=["one-hot", "bits", "diffcsp"],
)
def test_kernels_of_other_methods(parts: tuple[DiffusionProcess, ...], most: int) -> None:
    assert compiled_operators(noising(*parts)) <= most


def test_what_cannot_be_compiled_is_called_plainly_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(function: object) -> Callable[..., Tensor]:
        def call(*args: object) -> Tensor:
            raise RuntimeError("no compiler here\nat all")

        return call

    @fused
    def double(values: Tensor) -> Tensor:
        return 2 * values

    fuse(True)
    with pytest.MonkeyPatch.context() as patched, caplog.at_level(logging.WARNING, "kldm"):
        patched.setattr(compiling, "compiled", refuse)
        assert [double(torch.ones(1)).item() for _ in range(3)] == [2, 2, 2]
    (record,) = warnings(caplog)
    assert "double is not compiled (no compiler here); it is computed plainly" in record


def test_an_error_of_the_call_itself_is_the_callers(
    graphs: list[torch.fx.GraphModule], caplog: pytest.LogCaptureFixture
) -> None:
    crystals = random_crystals((2, 3), 0, torch.float32)
    fuse(True)
    with pytest.raises(KldmError, match="before it is fitted"):
        drawn(VPEuclidean(codec=LogTan()), crystals)
    assert not warnings(caplog)
    same(CELL, crystals, 2e-6)
    assert graphs, "one unfitted codec does not keep others from being compiled"


def test_a_table_is_made_once_for_its_arguments_and_outlives_inference() -> None:
    made: list[int] = []

    @table
    def numbers(count: int, dtype: torch.dtype) -> Tensor:
        made.append(count)
        return torch.arange(count, dtype=dtype)

    with torch.inference_mode():
        first = numbers(3, torch.float32)
    assert numbers(3, torch.float32) is first
    assert numbers(3, torch.float64).dtype == torch.float64
    assert numbers(4, torch.float32).tolist() == [0, 1, 2, 3]
    assert made == [3, 3, 4]
    weight = torch.ones(3, requires_grad=True)
    (weight * first).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 1, 2]


def test_the_compiler_is_not_imported_before_it_is_used() -> None:
    """It takes more than a second, which every command would wait for."""
    program = (
        "import sys, torch; from kldm.registry import SHELVES; [shelf.names() for shelf in SHELVES.values()]; "
        "sys.exit(any(name.startswith(('torch._dynamo', 'torch._inductor')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_table_is_no_part_of_a_graph(graphs: list[torch.fx.GraphModule]) -> None:
    made: list[int] = []

    @table
    def numbers(count: int) -> Tensor:
        made.append(count)
        return torch.arange(count)

    @fused
    def shifted(values: Tensor) -> Tensor:
        return values + numbers(3) * numbers(3)

    numbers(3)
    fuse(True)
    assert shifted(torch.ones(2, 3)).tolist() == [[1, 2, 5]] * 2
    assert made == [3]
    assert "arange" not in graphs[0].code
