"""The ways to compute the message block: each against plain loops, against each other, and in its derivatives."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kldm.crystals import Layout
from kldm.errors import KldmError
from kldm.execution import Messages
from kldm.networks.fast.encoding import MESSAGE_BLOCKS
from kldm.networks.fast.messages import message
from kldm.networks.fast.sums import Ends, sum_at, sum_by_segments
from kldm.testing.crystals import generator
from kldm.testing.networks import MIXED
from tests.networks.twins import relative

ON_CPU: tuple[Messages, ...] = ("autograd", "manual")
each_block = pytest.mark.parametrize("name", ON_CPU)


def inputs(sizes: Sequence[int], hidden: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Layout]:
    """receiver, sender, even, odd, weight, bias."""
    layout, rng = Layout.of(sizes), generator(0)
    pairs = len(layout.pairs.i)
    shapes = [(layout.total, hidden)] * 2 + [(pairs, hidden)] * 2 + [(hidden, hidden), (hidden,)]
    inputs = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]
    inputs[4] /= math.sqrt(hidden)
    return [tensor.to(dtype).requires_grad_() for tensor in inputs], layout


def block(name: Messages, tensors: Sequence[Tensor], layout: Layout) -> Tensor:
    receiver, sender, even, odd, weight, bias = tensors
    return MESSAGE_BLOCKS[name](receiver, sender, even, odd, weight, bias, layout.pairs)


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


@each_block
def test_by_loops(name: Messages) -> None:
    tensors, layout = inputs((3, 1, 2), 2)
    receiver, sender, even, odd, weight, bias = (tensor.tolist() for tensor in tensors)
    expected = torch.zeros(layout.total, 2, dtype=torch.float64)
    for pair, (i, j) in enumerate(zip(layout.pairs.i.tolist(), layout.pairs.j.tolist(), strict=True)):
        for to, of, sign in ((i, j, 1), (j, i, -1)):
            inner = [silu(receiver[to][k] + sender[of][k] + even[pair][k] + sign * odd[pair][k]) for k in range(2)]
            for h in range(2):
                expected[to, h] += silu(sum(weight[h][k] * inner[k] for k in range(2)) + bias[h])
    torch.testing.assert_close(block(name, tensors, layout), expected, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("sizes", [(3, 1, 2), (1, 1), (4,)], ids=str)
@each_block
def test_gradients_by_finite_differences(name: Messages, sizes: tuple[int, ...]) -> None:
    tensors, layout = inputs(sizes, 3)
    assert torch.autograd.gradcheck(lambda *args: block(name, args, layout), tensors)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
def test_manual_is_autograd(dtype: torch.dtype, bound: float) -> None:
    results = []
    for name in ON_CPU:
        tensors, layout = inputs(MIXED, 64, dtype)
        total = block(name, tensors, layout)
        by = torch.autograd.grad(total.square().sum(), tensors)
        results.append([total, *by])
    for expected, found in zip(*results, strict=True):
        assert relative(found, expected) < bound


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_manual_is_autograd_for_any_sizes(sizes: list[int]) -> None:
    tensors, layout = inputs(sizes, 4)
    expected, found = (block(name, tensors, layout) for name in ON_CPU)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@each_block
def test_lone_atoms_get_nothing(name: Messages) -> None:
    tensors, layout = inputs((1, 1), 4)
    total = block(name, tensors, layout)
    assert torch.equal(total, torch.zeros(2, 4, dtype=torch.float64))


@each_block
def test_products_in_bfloat16_sums_in_float32(name: Messages) -> None:
    exact, layout = inputs(MIXED, 64, torch.float32)
    tensors = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    expected = autograd_of([*exact], layout)
    found = block(name, tensors, layout)
    assert found.dtype == torch.float32
    gradients = torch.autograd.grad(found.square().sum(), tensors)
    assert [gradient.dtype for gradient in gradients] == [tensor.dtype for tensor in tensors]
    for ours, theirs in zip([found, *gradients], expected, strict=True):
        assert 1e-4 < relative(ours.float(), theirs) < 2e-2


def autograd_of(tensors: list[Tensor], layout: Layout) -> list[Tensor]:
    total = block("autograd", tensors, layout)
    return [total, *torch.autograd.grad(total.square().sum(), tensors)]


@each_block
def test_what_is_kept_for_the_backward_pass(name: Messages) -> None:
    """By hand: two numbers per edge and hidden unit. Autograd keeps three or more times that."""
    hidden = 32
    tensors, layout = inputs((20, 20), hidden, torch.float32)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = block(name, tensors, layout)
    assert total.requires_grad
    edges, weights = 2 * len(layout.pairs.i), 4 * hidden * hidden
    per_edge = (sum(kept.values()) - weights) / (4 * hidden * edges)
    assert per_edge == 2 if name == "manual" else per_edge > 3


@each_block
def test_the_same_without_gradients_and_nothing_given_is_overwritten(name: Messages) -> None:
    tensors, layout = inputs(MIXED, 8)
    before = [tensor.detach().clone() for tensor in tensors]
    expected = block(name, tensors, layout)
    with torch.no_grad():
        found = block(name, tensors, layout)
    assert not found.requires_grad
    assert torch.equal(found, expected)
    assert all(map(torch.equal, tensors, before))


def test_autograd_can_be_differentiated_twice() -> None:
    tensors, layout = inputs((3, 1), 3)
    assert torch.autograd.gradgradcheck(lambda *args: block("autograd", args, layout), tensors)


def test_manual_refuses_to_be_differentiated_twice() -> None:
    tensors, layout = inputs((3,), 4)
    total = block("manual", tensors, layout)
    with pytest.raises(KldmError, match=r"can be differentiated once; set execution\.messages"):
        torch.autograd.grad(total.sum(), tensors[:1], create_graph=True)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), end=st.sampled_from(Ends))
def test_sums_by_segments_are_the_sums(sizes: list[int], end: Ends) -> None:
    layout = Layout.of(sizes)
    values = torch.randn(2 * len(layout.pairs.i), 3, generator=generator(0), dtype=torch.float64)
    expected = sum_at(end, values, layout.pairs, layout.total)
    torch.testing.assert_close(sum_by_segments(end, values, layout.pairs), expected, atol=1e-13, rtol=1e-13)


def test_deterministic_algorithms_on_a_gpu_sum_by_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice itself, on a tensor that says that it is on a GPU."""

    class OnGpu(Tensor):
        is_cuda = True

    values, layout = torch.ones(2, 3).as_subclass(OnGpu), Layout.of([2])
    asked: list[Ends] = []
    monkeypatch.setattr("kldm.networks.fast.sums.sum_by_segments", lambda end, *_: asked.append(end))
    sum_at(Ends.SENDER, values, layout.pairs, 2)
    assert not asked
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    sum_at(Ends.SENDER, values, layout.pairs, 2)
    assert asked == [Ends.SENDER]


def test_message_of_an_edge() -> None:
    weight, bias = torch.tensor([[2.0, 0.0], [0.0, -1.0]]), torch.tensor([0.5, 0.0])
    found = message(torch.tensor([[1.0, -2.0]]), weight, bias)
    expected = [[silu(2 * silu(1.0) + 0.5), silu(-silu(-2.0))]]
    torch.testing.assert_close(found, torch.tensor(expected))
