"""The rounds of messages through ``torch.compile``."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kldm.networks.fast.messages import messages_of_tensors
from kldm.networks.fast.rounds import Surroundings, rounds

if TYPE_CHECKING:
    from kldm.networks.cspvnet import Layer

SHAPES = 64
"""How often one function is compiled for other shapes; past its limit of 8 torch would silently go on without."""

PAIRS, ATOMS, CRYSTALS = 1024, 512, 64
"""Multiples that a compiled batch is padded to: a training run on MP-20 then has about ten shapes, 3 % larger."""


def compiled_rounds(
    layers: "Sequence[Layer]",
    nodes: Tensor,
    around: Surroundings,
    self_edges: bool,
    product: torch.dtype,
) -> Tensor:
    """``rounds`` through ``torch.compile``, the batch padded to few shapes.

    Added atoms belong to a crystal of their own, and added pairs are of the first of them with itself: nothing of them
    reaches the others, nor, as their nodes are cut off, the gradient.
    """
    atoms, crystals = len(nodes), len(around.crystal)
    more = -(atoms + 1) % ATOMS + 1  # at least one, which the added pairs are of
    beyond = -len(around.i) % PAIRS
    padded = Surroundings(
        fractional=_padded(around.fractional, more),
        velocity=_padded(around.velocity, more),
        crystal=_padded(around.crystal, -(crystals + 1) % CRYSTALS + 1),
        owner=_padded(around.owner, more, crystals),
        i=_padded(around.i, beyond, atoms),
        j=_padded(around.j, beyond, atoms),
        degree=_padded(around.degree, more),
    )
    return _compiled()(layers, _padded(nodes, more), padded, self_edges, product)[:atoms]


def _padded(values: Tensor, more: int, value: int = 0) -> Tensor:
    """With so many further rows of that value; their width may be 0, which ``pad`` of torch 2.6 refuses."""
    return torch.cat([values, values.new_full((more, *values.shape[1:]), value)])


def _fused(
    layers: "Sequence[Layer]",
    nodes: Tensor,
    around: Surroundings,
    self_edges: bool,
    product: torch.dtype,
) -> Tensor:
    def block(receiver: Tensor, sender: Tensor, even: Tensor, odd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # A compiler makes one kernel of what the hand-written block does in several passes.
        return messages_of_tensors(receiver, sender, even, odd, weight, bias, around.i, around.j)

    return rounds(layers, nodes, around, self_edges, product, block)


@cache
def _compiled() -> Callable[..., Tensor]:
    """Made once for all networks: the weights are arguments, so that a copy of a network shares what was compiled."""
    import torch._dynamo.config  # takes a second, so not before it is used

    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, SHAPES)
    return torch.compile(_fused, dynamic=False)
