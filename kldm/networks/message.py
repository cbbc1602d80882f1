"""The message part of a layer over unordered pairs of atoms."""

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from kldm.crystals import Pairs


def message(first: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """silu(W silu(a) + b) of what the first linear map gave, a [..., H]."""
    return silu(linear(silu(first), weight, bias))


def message_block(
    receiver: Tensor, sender: Tensor, even: Tensor, odd: Tensor, weight: Tensor, bias: Tensor, pairs: Pairs
) -> Tensor:
    """Sum of the messages that an atom gets from the other atoms of its crystal.

    The message that atom i gets from atom j is silu(W silu(a_ij) + b) with a_ij = receiver_i + sender_j + even_ij +
    odd_ij. For a pair i < j the message from i to j has the same even part and the opposite odd one.

    Args:
        receiver, sender: [N, H], what the two ends of an edge contribute.
        even, odd: [P, H], what the pair contributes.
        weight, bias: [H, H] and [H] of the second linear map.
        pairs: of the batch; may be empty.

    Returns:
        [N, H]; zero for an atom alone in its crystal.
    """
    i, j = pairs.i, pairs.j
    to_i = receiver.index_select(0, i).add_(sender.index_select(0, j)).add_(even).add_(odd)
    to_j = receiver.index_select(0, j).add_(sender.index_select(0, i)).add_(even).sub_(odd)
    to_i, to_j = message(to_i, weight, bias), message(to_j, weight, bias)
    # Under autocast the messages may be bfloat16; they are summed in float32 all the same.
    dtype = torch.promote_types(to_i.dtype, torch.float32)
    zero = to_i.new_zeros(receiver.shape, dtype=dtype)
    return zero.index_add(0, i, to_i.to(dtype)).index_add(0, j, to_j.to(dtype))
