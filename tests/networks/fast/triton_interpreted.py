"""The fused kernel in Triton's interpreter; ``test_triton.py`` runs this file in a process of its own.

The interpreter multiplies exactly whatever precision is asked for, and one program after the other: what a GPU rounds,
and whether its sums are atomic, is not seen here.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime import interpreter

from kldm.crystals import Layout
from kldm.networks.fast.messages import first_activation
from kldm.networks.fast.triton_messages import _Blocks, _fault, _fused, _Kind, _launch
from tests.networks.fast.test_messages import block, inputs
from tests.networks.twins import relative


@pytest.fixture(autouse=True, params=["highest", "high"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """The two ways to cut the work into blocks."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def halves_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter holds bfloat16 as whole numbers of 16 bits, and multiplies these."""
    multiply = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.data.dtype != np.uint16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def assert_equal(tensors: Sequence[Tensor], layout: Layout, bound: float) -> None:
    """The sums and all gradients, to those of plain torch in float64."""
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    receiver, sender, even, odd, weight, bias = tensors
    found, expected = (
        _fused(receiver, sender, even, odd, weight, bias, layout.pairs),
        block("autograd", exact, layout),
    )
    assert found.dtype == torch.float32
    by, by_exact = (
        torch.autograd.grad(total.square().sum(), of) for total, of in ((found, tensors), (expected, exact))
    )
    for ours, theirs in zip([found, *by], [expected, *by_exact], strict=True):
        assert relative(ours.double(), theirs) <= bound
    for ours, tensor in zip(by, tensors, strict=True):
        assert ours.dtype == tensor.dtype


@pytest.mark.parametrize(
    ("sizes", "hidden"),
    [((3, 1, 2), 48), ((12,), 96), ((14, 2, 1, 5), 50), ((3, 4), 512), ((3,), 300), ((20, 1), 1), ((2,), 16)],
    ids=str,
)
def test_sums_and_gradients(sizes: tuple[int, ...], hidden: int) -> None:
    """Widths below, between and at multiples of a block; one pair, and more than a block of them."""
    assert_equal(*inputs(sizes, hidden, torch.float32), bound=1e-5)


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), hidden=st.integers(1, 70))
def test_any_sizes_and_width(sizes: list[int], hidden: int) -> None:
    assert_equal(*inputs(sizes, hidden, torch.float32), bound=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)], ids=str)
@pytest.mark.usefixtures("halves_multiplied")
def test_rounded_products(dtype: torch.dtype, bound: float) -> None:
    exact, layout = inputs((14, 2, 1, 5), 96, torch.float32)
    tensors = [tensor if place < 2 else tensor.detach().to(dtype) for place, tensor in enumerate(exact)]
    assert_equal([tensor.requires_grad_() for tensor in tensors], layout, bound)


@pytest.mark.usefixtures("halves_multiplied")
def test_rounded_nodes_are_summed_in_float32() -> None:
    assert_equal(*inputs((5, 3), 32, torch.bfloat16), bound=2e-2)


def test_lone_atoms_get_nothing() -> None:
    tensors, layout = inputs((1, 1), 8, torch.float32)
    receiver, sender, even, odd, weight, bias = tensors
    total = _fused(receiver, sender, even, odd, weight, bias, layout.pairs)
    assert torch.equal(total, torch.zeros(2, 8))
    for gradient in torch.autograd.grad(total.sum(), tensors):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_what_is_kept() -> None:
    """Both pre-activations of every edge, to every element, and only if asked for; the same sums either way."""
    exact, layout = inputs((14, 1, 3), 200, torch.float32)
    receiver, sender, even, odd, weight, bias = (tensor.detach() for tensor in exact)
    total, first, second = _launch(receiver, sender, even, odd, weight, bias, layout.pairs, keep=True)
    expected = first_activation(receiver, sender, even, odd, layout.pairs)
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-5)
    expected = torch.addmm(bias, torch.nn.functional.silu(expected), weight.t())
    torch.testing.assert_close(second, expected, atol=1e-5, rtol=1e-5)
    again, *nothing = _launch(receiver, sender, even, odd, weight, bias, layout.pairs, keep=False)
    assert torch.equal(again, total)
    assert [tensor.numel() for tensor in nothing] == [0, 0]


def test_inputs_of_any_stride() -> None:
    exact, layout = inputs((4, 3), 20, torch.float32)
    tensors = [tensor.detach() for tensor in exact]
    strided = [torch.stack([tensor, tensor], -1)[..., 0] for tensor in tensors]
    strided[4] = tensors[4].t().contiguous().t()
    strided[5] = torch.ones(1).expand(20)
    tensors[5] = torch.ones(20)
    assert not any(tensor.is_contiguous() for tensor in strided)
    expected = block("autograd", [tensor.double() for tensor in tensors], layout)
    receiver, sender, even, odd, weight, bias = strided
    found = _fused(receiver, sender, even, odd, weight, bias, layout.pairs)
    assert relative(found.double(), expected) < 1e-5


def test_gradients_of_some_inputs() -> None:
    exact, layout = inputs((4, 3), 20, torch.float32)
    tensors = [tensor.detach().requires_grad_(place in (0, 4)) for place, tensor in enumerate(exact)]
    wide = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in tensors]
    receiver, sender, even, odd, weight, bias = tensors
    torch.autograd.backward(_fused(receiver, sender, even, odd, weight, bias, layout.pairs).square().sum())
    torch.autograd.backward(block("autograd", wide, layout).square().sum())
    for ours, theirs in zip(tensors, wide, strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None and theirs.grad is not None:
            assert relative(ours.grad.double(), theirs.grad) < 1e-5


def test_the_interpreter_is_never_used_for_users() -> None:
    kind = _Kind.of(torch.zeros(1, 8), torch.zeros(8, 8))
    assert _fault(kind, keep=True) == "Triton is in its interpreter"


def test_blocks_differ_by_precision(precision: str) -> None:
    kind = _Kind.of(torch.zeros(1, 512), torch.zeros(512, 512))
    assert _Blocks.of(kind).units == {"highest": 64, "high": 128}[precision]
