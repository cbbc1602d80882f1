"""The message part of a layer of CSPVNet over unordered pairs of atoms."""

from torch import Tensor
from torch.nn.functional import linear, silu

from kldm.crystals import Pairs


def message_block(
    receiver: Tensor, sender: Tensor, even: Tensor, odd: Tensor, weight: Tensor, bias: Tensor, pairs: Pairs
) -> Tensor:
    """Mean over the other atoms of a crystal of the messages that they send.

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
    to_i = silu(linear(silu(to_i), weight, bias))
    to_j = silu(linear(silu(to_j), weight, bias))
    total = to_i.new_zeros(receiver.shape).index_add(0, i, to_i).index_add(0, j, to_j)
    return total * pairs.inverse_degree.to(total.dtype).unsqueeze(-1)
