"""The fused message block: when it is used, that the kernel compiles, and its numbers in Triton's interpreter."""

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from kldm.crystals import Layout, Pairs
from kldm.execution import Execution
from kldm.networks import CSPVNet
from kldm.networks.fast import triton_messages
from kldm.networks.fast.messages import first_activation
from kldm.networks.fast.sums import Ends, sum_at
from kldm.networks.fast.triton_messages import WIDEST, _Blocks, _fault, _Kind, _launch, _obstacle, _warn
from kldm.testing.networks import INTERFACES, MIXED, case
from tests.networks.fast.test_messages import block, inputs
from tests.networks.twins import relative
from tests.small import needs_gpu
from tests.synchronisation import unsynchronised

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
KERNEL = "kldm.networks.fast.triton_kernel"


@pytest.fixture(autouse=True)
def first_time() -> Iterator[None]:
    """Nothing tried, nothing said."""
    for cached in (_fault, _warn):
        cached.cache_clear()
    yield
    for cached in (_fault, _warn):
        cached.cache_clear()


class OnGpu(Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True


def on_gpu(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().as_subclass(OnGpu).requires_grad_() for tensor in tensors]


class Kernel:
    """What stands for the kernel: its launches, and what it writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None]) -> None:
        self.launches: list[tuple[int, bool]] = []
        """Pairs, and whether pre-activations are kept."""
        self._write = write
        module = ModuleType(KERNEL)
        vars(module).update(messages=self, INTERPRETED=False)
        monkeypatch.setitem(sys.modules, KERNEL, module)

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*args: Any, KEEP: bool, **_: Any) -> None:
            self.launches.append((args[11], KEEP))
            self._write(*args[:11], KEEP)

        return launch


def right(*args: Any) -> None:
    receiver, sender, even, odd, weight, bias, i, j, total, first, second, keep = args
    pairs = Pairs(i, j, torch.cat([i, j]).bincount(minlength=len(total)))
    a = first_activation(receiver, sender, even, odd, pairs)
    z = torch.addmm(bias, silu(a), weight.t())
    total.copy_(sum_at(Ends.RECEIVER, silu(z), pairs, len(total)))
    if keep:
        first.copy_(a)
        second.copy_(z)


def wrong_sums(*args: Any) -> None:
    right(*args)
    args[8][-1] *= 0.5


def not_a_number(*args: Any) -> None:
    right(*args)
    args[8][0, 0] = torch.nan


def wrong_activations(*args: Any) -> None:
    right(*args)
    args[10][-8:] = 0


def failing(*args: Any) -> None:
    raise RuntimeError("no such instruction\nin line 7")


def says(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "kldm.networks"]


def test_manual_takes_over_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        tensors, layout = inputs((3, 1, 2), 8, torch.float32)
        found, expected = (block(name, tensors, layout) for name in ("triton", "manual"))
        assert torch.equal(found, expected)
        by, by_manual = (torch.autograd.grad(total.square().sum(), tensors) for total in (found, expected))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(by, by_manual, strict=True))
    assert says(caplog) == ['messages are computed as "manual", not as "triton": there is no NVIDIA GPU']
    assert caplog.records[0].levelno == logging.WARNING


def test_a_network_without_a_gpu() -> None:
    torch.manual_seed(0)
    interface = INTERFACES["structure prediction"]
    network = CSPVNet(interface, hidden=16, layers=2, frequencies=4, time_features=8).double()
    latent, s, layout = case(interface, MIXED)
    expected = network(latent, s, layout)
    network.execute(Execution(messages="triton"))
    for name, value in network(latent, s, layout).items():
        assert torch.equal(value, expected[name])


def test_obstacles(monkeypatch: pytest.MonkeyPatch) -> None:
    def obstacle(
        hidden: int = 8, node: torch.dtype = torch.float32, product: torch.dtype = torch.float32
    ) -> str | None:
        return _obstacle(torch.empty(0, hidden, dtype=node).as_subclass(OnGpu), torch.empty(0, hidden, dtype=product))

    assert obstacle() is None
    assert obstacle(product=torch.bfloat16) is None
    assert obstacle(WIDEST) is None
    assert obstacle(WIDEST + 1) == "it takes at most 8192 hidden units, not 8193"
    assert obstacle(node=torch.float64) == "it does not compute in float64"
    assert obstacle(product=torch.float64) == "it does not compute in float64"
    assert _obstacle(torch.empty(0, 8), torch.empty(8, 8)) == "there is no NVIDIA GPU"
    assert _obstacle(torch.empty(0, 8, device="meta"), torch.empty(8, 8)) == "there is no NVIDIA GPU"
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert obstacle() == "its sums are not deterministic"
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert obstacle() == "there is no NVIDIA GPU"


def test_without_triton(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, KERNEL, raising=False)
    tensors, layout = inputs((3, 2), 8, torch.float32)
    assert torch.equal(block("triton", on_gpu(tensors), layout), block("manual", tensors, layout))
    (said,) = says(caplog)
    assert "Triton cannot be imported" in said


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (failing, "the kernel fails on this GPU (RuntimeError: no such instruction)"),
        (wrong_sums, "the kernel is wrong on this GPU (relative error "),
        (wrong_activations, "the kernel is wrong on this GPU (relative error "),
        (not_a_number, "the kernel is wrong on this GPU (relative error nan)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_kernel_that_does_not_work_is_tried_once(
    write: Callable[..., None], reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = Kernel(monkeypatch, write)
    for _ in range(2):
        tensors, layout = inputs((3, 2), 8, torch.float32)
        assert torch.equal(block("triton", on_gpu(tensors), layout), block("manual", tensors, layout))
    assert kernel.launches == [(102, True)]
    (said,) = says(caplog)
    assert reason in said


def test_a_kernel_that_works_is_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """With gradients it keeps the pre-activations, without it does not; each is tried once."""
    kernel = Kernel(monkeypatch, right)
    plain, layout = inputs((4, 3), 8, torch.float32)
    expected = block("manual", plain, layout)
    by_manual = torch.autograd.grad(expected.square().sum(), plain)
    for _ in range(2):
        tensors = on_gpu(plain)
        total = block("triton", tensors, layout)
        torch.testing.assert_close(total.as_subclass(Tensor), expected)
        for ours, theirs in zip(torch.autograd.grad(total.square().sum(), tensors), by_manual, strict=True):
            torch.testing.assert_close(ours.as_subclass(Tensor), theirs)
        with torch.no_grad():
            torch.testing.assert_close(block("triton", tensors, layout).as_subclass(Tensor), expected)
    trials, calls = [(102, True), (102, False)], [(9, True), (9, False)]
    assert kernel.launches == [trials[0], calls[0], trials[1], calls[1], *calls]
    assert not says(caplog)


def test_trials_leave_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, right)
    before = torch.get_rng_state()
    assert _fault(_Kind.of(torch.zeros(1, 8), torch.zeros(8, 8)), keep=True) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_without_pairs_nothing_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, failing)
    exact, layout = inputs((1, 1), 8, torch.float32)
    receiver, sender, even, odd, weight, bias = exact
    assert torch.equal(
        _launch(receiver, sender, even, odd, weight, bias, layout.pairs, keep=True)[0], torch.zeros(2, 8)
    )
    assert not kernel.launches


@pytest.mark.parametrize("major", [7, 8, 9, 12])
@pytest.mark.parametrize("hidden", [1, 8, 48, 96, 512, WIDEST])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_blocks(major: int, hidden: int, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel relies on: tiles of powers of two, at least 16, and units in whole steps of the sum."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    _Blocks.of.cache_clear()
    blocks = _Blocks.of(_Kind(torch.device("cuda"), torch.float32, torch.float32, hidden, precision))
    _Blocks.of.cache_clear()
    for size in (blocks.pairs, blocks.units, blocks.inner):
        assert size >= 16
        assert size.bit_count() == 1
    assert blocks.units % blocks.inner == 0
    assert blocks.units < 2 * max(hidden, 16)


def test_triton_is_not_imported_unasked() -> None:
    program = "import sys; import kldm.networks; assert 'kldm.networks.fast.triton_kernel' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@needs_triton
def test_in_the_interpreter() -> None:
    """In a process of its own, as Triton decides when it is imported."""
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            Path(__file__).with_name("triton_interpreted.py"),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout


LARGEST_SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that a block of threads may have, by compute capability."""


@needs_triton
@pytest.mark.parametrize("capability", LARGEST_SHARED)
@pytest.mark.parametrize(
    ("precision", "product", "hidden", "keep"),
    [("tf32", "fp32", 512, True), ("ieee", "fp32", 50, True), ("tf32", "bf16", 512, False)],
)
def test_compiles_for_gpus_that_are_not_here(
    capability: int,
    precision: str,
    product: str,
    hidden: int,
    keep: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kldm.networks.fast.triton_kernel import messages

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: divmod(capability, 10))
    _Blocks.of.cache_clear()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[product]
    blocks = _Blocks.of(_Kind(torch.device("cuda"), torch.float32, dtype, hidden, precision))
    _Blocks.of.cache_clear()
    constants = {
        "HIDDEN": hidden,
        "KEEP": keep,
        "PRECISION": precision,
        "BLOCK_PAIRS": blocks.pairs,
        "BLOCK_UNITS": blocks.units,
        "BLOCK_INNER": blocks.inner,
    }
    types = ["*fp32"] * 2 + [f"*{product}"] * 4 + ["*i64"] * 2 + ["*fp32"] + [f"*{product}"] * 2 + ["i32"]
    signature = dict(zip(messages.arg_names, types + ["constexpr"] * len(constants), strict=True))
    compiled = triton.compile(
        ASTSource(messages, signature, constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": blocks.warps, "num_stages": blocks.stages},
    )
    assert compiled.metadata.shared <= LARGEST_SHARED[capability]
    # Products of tiles go to the tensor cores, save exact ones.
    assert ("mma" in compiled.asm["ptx"]) == (precision == "tf32")


@pytest.fixture
def precise() -> Iterator[Callable[[str], None]]:
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def moved(tensors: list[Tensor], layout: Layout) -> tuple[list[Tensor], Layout]:
    return [tensor.detach().cuda().requires_grad_() for tensor in tensors], Layout.of(layout.sizes, "cuda")


@needs_gpu
@pytest.mark.parametrize(
    ("precision", "product", "bound"),
    [
        ("highest", torch.float32, 1e-5),
        ("high", torch.float32, 5e-3),
        ("high", torch.bfloat16, 2e-2),
        ("high", torch.float16, 5e-3),
    ],
    ids=str,
)
@pytest.mark.parametrize("hidden", [48, 96, 300, 512])
def test_on_a_gpu(
    precision: str,
    product: torch.dtype,
    bound: float,
    hidden: int,
    precise: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    precise(precision)
    exact, layout = inputs(MIXED, hidden, torch.float32)
    rounded = [tensor if place < 2 else tensor.detach().to(product) for place, tensor in enumerate(exact)]
    tensors, there = moved(rounded, layout)
    wide = [tensor.detach().double().requires_grad_() for tensor in rounded]
    found, expected = block("triton", tensors, there), block("autograd", wide, layout)
    by, by_exact = (torch.autograd.grad(total.square().sum(), of) for total, of in ((found, tensors), (expected, wide)))
    for ours, theirs in zip([found, *by], [expected, *by_exact], strict=True):
        assert relative(ours.double().cpu(), theirs) < bound
    assert not says(caplog), "the kernel itself, not what takes over"


@needs_gpu
def test_memory_on_a_gpu_without_gradients(caplog: pytest.LogCaptureFixture) -> None:
    hidden = 512
    tensors, layout = moved(*inputs((52,) * 8, hidden, torch.float32))
    with torch.no_grad():
        block("triton", tensors, layout)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        total = block("triton", tensors, layout)
    assert torch.cuda.max_memory_allocated() - before == total.untyped_storage().nbytes()
    assert not says(caplog)


@needs_gpu
def test_a_gpu_is_not_waited_for() -> None:
    tensors, layout = moved(*inputs((5, 3), 32, torch.float32))
    torch.autograd.backward(block("triton", tensors, layout).sum())
    with unsynchronised("cuda"):
        torch.autograd.backward(block("triton", tensors, layout).sum())


@needs_gpu
def test_what_takes_over_on_a_gpu(monkeypatch: pytest.MonkeyPatch, precise: Callable[[str], None]) -> None:
    precise("highest")
    tensors, layout = moved(*inputs(MIXED, 64, torch.float32))
    found = block("triton", tensors, layout)
    monkeypatch.setattr(triton_messages, "_obstacle", lambda *_: "of a test")
    assert relative(block("triton", tensors, layout), found) < 1e-5
