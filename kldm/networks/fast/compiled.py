"""The rounds of messages through ``torch.compile``."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kldm.networks.fast.messages import messages_of_tensors
from kldm.networks.fast.rounds import Inputs, rounds

if TYPE_CHECKING:
    from kldm.networks.cspvnet import Layer

SHAPES = 64
"""How often one function is compiled for new shapes; beyond its own limit of 8 torch silently stops compiling."""

PAIRS, ATOMS, CRYSTALS = 1024, 512, 64
"""Multiples to which a compiled batch is padded: a training run on MP-20 then has about ten shapes, 3 % larger."""


def compiled_rounds(
    layers: "Sequence[Layer]",
    nodes: Tensor,
    inputs: Inputs,
    self_edges: bool,
    product: torch.dtype,
) -> Tensor:
    """``rounds`` through ``torch.compile``, the batch padded to few shapes.

    Added atoms belong to a crystal of their own, and added pairs join the first of them with itself. So they change
    neither the other atoms nor, as their nodes are cut off, the gradient.
    """
    atoms, crystals = len(nodes), len(inputs.crystal)
    more_atoms = -(atoms + 1) % ATOMS + 1  # at least one, for the added pairs
    more_pairs = -len(inputs.i) % PAIRS
    padded = Inputs(
        fractional=_padded(inputs.fractional, more_atoms),
        velocity=_padded(inputs.velocity, more_atoms),
        crystal=_padded(inputs.crystal, -(crystals + 1) % CRYSTALS + 1),
        owner=_padded(inputs.owner, more_atoms, crystals),
        i=_padded(inputs.i, more_pairs, atoms),
        j=_padded(inputs.j, more_pairs, atoms),
        degree=_padded(inputs.degree, more_atoms),
    )
    return _compiled()(layers, _padded(nodes, more_atoms), padded, self_edges, product)[:atoms]


def _padded(values: Tensor, more: int, value: int = 0) -> Tensor:
    """The values with more rows of one value; their width may be 0, which ``pad`` of torch 2.6 refuses."""
    return torch.cat([values, values.new_full((more, *values.shape[1:]), value)])


def _fused(
    layers: "Sequence[Layer]",
    nodes: Tensor,
    inputs: Inputs,
    self_edges: bool,
    product: torch.dtype,
) -> Tensor:
    def block(receiver: Tensor, sender: Tensor, even: Tensor, odd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # The compiler fuses into one kernel what the hand-written block does in several passes.
        return messages_of_tensors(receiver, sender, even, odd, weight, bias, inputs.i, inputs.j)

    return rounds(layers, nodes, inputs, self_edges, product, block)


@cache
def _compiled() -> Callable[..., Tensor]:
    """Compiled once for all networks: the weights are arguments, so that copies of a network share it."""
    import torch._dynamo.config  # takes a second, so not before it is used

    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, SHAPES)
    return torch.compile(_fused, dynamic=False)
