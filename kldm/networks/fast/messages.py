"""The message part of a layer over unordered pairs of atoms: one function, interchangeable ways to compute it."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import linear, silu

from kldm.crystals import Pairs
from kldm.errors import KldmError
from kldm.networks.fast.products import affine, differentiated
from kldm.networks.fast.sums import Ends, sum_at, sum_of_bags
from kldm.runtime.rows import add_rows, take_rows


class MessageBlock(Protocol):
    """Sum of the messages that an atom gets from the other atoms of its crystal.

    The message that atom i gets from atom j is silu(W silu(a_ij) + b) with a_ij = receiver_i + sender_j + even_ij +
    odd_ij. For a pair i < j the message from i to j has the same even part and the opposite odd one. Each a_ij is
    rounded to the type of ``weight``, which the factors of the product have; messages are summed in at least float32,
    and so are the gradients that an atom gets.
    """

    def __call__(
        self,
        receiver: Tensor,
        sender: Tensor,
        even: Tensor,
        odd: Tensor,
        weight: Tensor,
        bias: Tensor,
        pairs: Pairs,
    ) -> Tensor:
        """[N, H]; zero for the atom of a one-atom crystal.

        Args:
            receiver, sender: [N, H], what the two ends of an edge contribute; of the type of ``weight``.
            even, odd: [P, H], what the pair contributes; of the same type.
            weight, bias: [H, H] and [H] of the second linear map; of bfloat16 to round the products.
            pairs: of the batch; may be empty.
        """
        ...


def message(first: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """silu(W silu(a) + b) of what the first linear map gave, a [..., H]."""
    return silu(linear(silu(first), weight, bias))


def autograd_messages(
    receiver: Tensor, sender: Tensor, even: Tensor, odd: Tensor, weight: Tensor, bias: Tensor, pairs: Pairs
) -> Tensor:
    """The block by torch's own operators, which can be differentiated twice."""
    return messages_of_tensors(receiver, sender, even, odd, weight, bias, pairs.i, pairs.j)


def messages_of_tensors(
    receiver: Tensor, sender: Tensor, even: Tensor, odd: Tensor, weight: Tensor, bias: Tensor, i: Tensor, j: Tensor
) -> Tensor:
    """``autograd_messages`` of the pairs i, j, for a compiler, which cannot follow the record ``Pairs``."""
    wide = torch.promote_types(receiver.dtype, torch.float32)
    receiver, sender = receiver.to(wide), sender.to(wide)
    to_i = take_rows(receiver, i) + take_rows(sender, j) + even + odd
    to_j = take_rows(receiver, j) + take_rows(sender, i) + even - odd
    to_i, to_j = (message(first.to(weight.dtype), weight, bias) for first in (to_i, to_j))
    return add_rows(to_i.to(wide), i, len(receiver)) + add_rows(to_j.to(wide), j, len(receiver))


def manual_messages(
    receiver: Tensor, sender: Tensor, even: Tensor, odd: Tensor, weight: Tensor, bias: Tensor, pairs: Pairs
) -> Tensor:
    """The block with a backward pass written by hand."""
    return differentiated_by_hand(summed_messages, (receiver, sender, even, odd, weight, bias), pairs)


Summed = Callable[..., tuple[Tensor, Tensor, Tensor]]
"""A ``MessageBlock`` with a further argument ``keep``: whether it also returns the pre-activations a and z [2 P, H] of
all edges, which the backward pass needs."""


def differentiated_by_hand(summed: Summed, tensors: tuple[Tensor, ...], pairs: Pairs) -> Tensor:
    """The sums of a block; nothing is kept where no gradients will be needed."""
    if not differentiated(*tensors):
        return summed(*tensors, pairs, keep=False)[0]
    result: Tensor = _ByHand.apply(summed, *tensors, pairs)  # type: ignore[no-untyped-call]
    return result


class _ByHand(Function):
    """Keeps, for the backward pass, the two pre-activations of every edge and nothing else of it.

    With a = receiver_i + sender_j + even +- odd, z = W silu(a) + b and the gradient g of the sums: dz = g_i silu'(z),
    da = (W^T dz) silu'(a), dW = sum dz silu(a)^T, db = sum dz. An edge's da goes to its receiver and its sender; the
    sum of the two directions to the even part, their difference to the odd one. silu(a) is computed again: that costs
    a fraction of the product that it enters. Can be differentiated once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        summed: Summed,
        receiver: Tensor,
        sender: Tensor,
        even: Tensor,
        odd: Tensor,
        weight: Tensor,
        bias: Tensor,
        pairs: Pairs,
    ) -> Tensor:
        total, first, second = summed(receiver, sender, even, odd, weight, bias, pairs, keep=True)
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
        return (None, *message_gradients(gradient, first, second, weight, ctx.pairs, ctx.node_dtype), None)


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
    """``Summed`` in a few passes over the edges; pre-activations that are not to be kept are overwritten."""
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
    # In place: arrays of this size take most of the memory, and writing them most of the time.
    torch.ops.aten.silu_backward.grad_input(inner, second, grad_input=inner)
    activated = silu(first)
    by_weight, by_bias = inner.t() @ activated, inner.sum(0)
    outer = affine(inner, weight.t())
    torch.ops.aten.silu_backward.grad_input(outer, first, grad_input=outer)
    by_receiver, by_sender = (sum_at(end, outer, pairs, atoms).to(node_dtype) for end in Ends)
    to_i, to_j = outer[:half], outer[half:]
    by_even = to_i + to_j
    return by_receiver, by_sender, by_even, to_i.sub_(to_j), by_weight, by_bias
