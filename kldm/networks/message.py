"""The message part of a layer over unordered pairs of atoms: one function, interchangeable ways to compute it."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from kldm.crystals import Pairs
from kldm.execution import Messages
from kldm.networks.manual import manual_messages
from kldm.networks.triton_messages import triton_messages
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
        """[N, H]; zero for an atom alone in its crystal.

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
    """The block in plain torch: to be read, and to be differentiated twice."""
    return messages_of_tensors(receiver, sender, even, odd, weight, bias, pairs.i, pairs.j)


def messages_of_tensors(
    receiver: Tensor, sender: Tensor, even: Tensor, odd: Tensor, weight: Tensor, bias: Tensor, i: Tensor, j: Tensor
) -> Tensor:
    """``autograd_messages`` of the pairs i, j: to be fused by a compiler, which knows no record of them."""
    wide = torch.promote_types(receiver.dtype, torch.float32)
    receiver, sender = receiver.to(wide), sender.to(wide)
    to_i = take_rows(receiver, i) + take_rows(sender, j) + even + odd
    to_j = take_rows(receiver, j) + take_rows(sender, i) + even - odd
    to_i, to_j = (message(first.to(weight.dtype), weight, bias) for first in (to_i, to_j))
    return add_rows(to_i.to(wide), i, len(receiver)) + add_rows(to_j.to(wide), j, len(receiver))


MESSAGE_BLOCKS: Mapping[Messages, MessageBlock] = {
    "autograd": autograd_messages,
    "manual": manual_messages,
    "triton": triton_messages,
}
