"""The message block with a hand-written backward pass."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import silu

from kldm.crystals import Pairs
from kldm.errors import KldmError
from kldm.networks.products import affine, differentiated
from kldm.networks.sums import Ends, sum_at, sum_of_bags


def manual_messages(
    receiver: Tensor, sender: Tensor, even: Tensor, odd: Tensor, weight: Tensor, bias: Tensor, pairs: Pairs
) -> Tensor:
    """``MessageBlock`` with a backward pass written by hand, which keeps the two pre-activations of an edge alone.

    Without gradients they are overwritten by the activations.
    """
    tensors = (receiver, sender, even, odd, weight, bias)
    if not differentiated(*tensors):
        return summed_messages(*tensors, pairs, keep=False)[0]
    result: Tensor = ManualMessageBlock.apply(*tensors, pairs)  # type: ignore[no-untyped-call]
    return result


class ManualMessageBlock(Function):
    """``MessageBlock`` that keeps, for the backward pass, the two pre-activations of every edge and nothing else of it.

    With a = receiver_i + sender_j + even +- odd, z = W silu(a) + b and the gradient g of the sums: dz = g_i silu'(z),
    da = (W^T dz) silu'(a), dW = sum dz silu(a)^T, db = sum dz. An edge's da goes to its receiver and its sender; the
    sum of the two directions to the even part, their difference to the odd one. silu(a) is computed again: that costs
    a fraction of the product that it enters. Can be differentiated once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        receiver: Tensor,
        sender: Tensor,
        even: Tensor,
        odd: Tensor,
        weight: Tensor,
        bias: Tensor,
        pairs: Pairs,
    ) -> Tensor:
        total, first, second = summed_messages(receiver, sender, even, odd, weight, bias, pairs, keep=True)
        ctx.pairs, ctx.node_dtype = pairs, receiver.dtype
        ctx.save_for_backward(first, second, weight)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # asked for with create_graph; the steps below are not recorded
            raise KldmError(
                "messages with a backward pass written by hand can be differentiated once",
                remedy='set execution.messages = "autograd"',
            )
        first, second, weight = ctx.saved_tensors
        return (*message_gradients(gradient, first, second, weight, ctx.pairs, ctx.node_dtype), None)


def summed_messages(
    receiver: Tensor,
    sender: Tensor,
    even: Tensor,
    odd: Tensor,
    weight: Tensor,
    bias: Tensor,
    pairs: Pairs,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of the messages [N, H], and the pre-activations a and z [2 P, H]; if not to be kept, their silu."""
    first = first_activation(receiver, sender, even, odd, pairs).to(weight.dtype)
    second = affine(silu(first, inplace=not keep), weight, bias, activated=not keep)
    return sum_at(Ends.RECEIVER, silu(second) if keep else second, pairs, len(receiver)), first, second


def first_activation(receiver: Tensor, sender: Tensor, even: Tensor, odd: Tensor, pairs: Pairs) -> Tensor:
    """a of all edges, [2 P, H], first those to i, then those to j; on a CPU of the type of the parts."""
    if receiver.device.type == "cpu":
        # One pass that reads the four parts of an edge and writes their sum.
        return sum_of_bags(torch.cat([receiver, sender, even, odd]), pairs.parts)
    wide = torch.promote_types(receiver.dtype, torch.float32)
    receiver, sender = receiver.to(wide), sender.to(wide)
    half = len(pairs.i)
    first = receiver.new_empty(2 * half, receiver.shape[1])
    to_i, to_j = first[:half], first[half:]
    torch.index_select(receiver, 0, pairs.i, out=to_i)
    torch.index_select(receiver, 0, pairs.j, out=to_j)
    other = sender.index_select(0, pairs.j)
    to_i.add_(other).add_(even).add_(odd)
    to_j.add_(torch.index_select(sender, 0, pairs.i, out=other)).add_(even).sub_(odd)
    return first


def message_gradients(
    gradient: Tensor, first: Tensor, second: Tensor, weight: Tensor, pairs: Pairs, node_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to receiver, sender, even, odd, weight and bias.

    Args:
        gradient: [N, H], of the sums.
        first, second: [2 P, H], the pre-activations a and z.
        weight: [H, H], of the second linear map.
        pairs: of the batch.
        node_dtype: type of receiver and sender.
    """
    half, atoms = len(pairs.i), len(gradient)
    rounded = gradient.to(weight.dtype)
    inner = torch.empty_like(second)
    torch.index_select(rounded, 0, pairs.i, out=inner[:half])
    torch.index_select(rounded, 0, pairs.j, out=inner[half:])
    # In place: an array of this size is what memory is short of, and writing one what time goes to.
    torch.ops.aten.silu_backward.grad_input(inner, second, grad_input=inner)
    activated = silu(first)
    by_weight, by_bias = inner.t() @ activated, inner.sum(0)
    outer = affine(inner, weight.t())
    torch.ops.aten.silu_backward.grad_input(outer, first, grad_input=outer)
    by_receiver, by_sender = (sum_at(end, outer, pairs, atoms).to(node_dtype) for end in Ends)
    to_i, to_j = outer[:half], outer[half:]
    by_even = to_i + to_j
    return by_receiver, by_sender, by_even, to_i.sub_(to_j), by_weight, by_bias
