"""The layers of a network over pairs of atoms with about a third of the arithmetic of their readable form."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn, split
from torch.nn.functional import linear

from kldm.compiling import allow_shapes
from kldm.networks.features import sinusoids
from kldm.networks.message import message, messages_of_tensors
from kldm.networks.parts import Layer
from kldm.networks.products import affine
from kldm.runtime.rows import take_rows

PAIRS, ATOMS, CRYSTALS = 1024, 512, 64
"""Multiples that a compiled batch is padded to: a training run on MP-20 then has about ten shapes, 3 % larger."""


class Surroundings(NamedTuple):
    """What the layers read of a batch beside the nodes. Compilers know named tuples, but no other records.

    Attributes:
        fractional: [N, 3], at least float32.
        velocity: [N, 3], or [N, 0] where none is read.
        crystal: [B, C], the invariants of all channels per crystal.
        owner: int64 [N], the crystal of each atom.
        i, j, degree: see ``Pairs``.
    """

    fractional: Tensor
    velocity: Tensor
    crystal: Tensor
    owner: Tensor
    i: Tensor
    j: Tensor
    degree: Tensor


def rounds(
    layers: nn.ModuleList,
    nodes: Tensor,
    around: Surroundings,
    frequencies: int,
    self_edges: bool,
    product: torch.dtype,
    block: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """All layers: nodes [N, H] in, nodes out.

    The first linear map of the messages is the dear one; its input [h_i, h_j, crystal, Linear(v_j - v_i), sin, cos] is
    never built. Instead
    - the parts of h_i, h_j, crystal and v are mapped once per atom or crystal and then gathered,
    - the two linear maps that v_j - v_i goes through are multiplied into one,
    - sin and cos of the coordinate differences are computed once per call, and for i < j alone: for the other
      direction the cosine is the same and the sine changes its sign,
    - the message of an atom to itself has sin = 0 and cos = 1 and is made once per atom.

    Args:
        layers: of ``Layer``.
        nodes: [N, H].
        around: the rest of the batch.
        frequencies: see ``sinusoids``.
        self_edges: whether an atom is among those that it gets messages from.
        product: type that the factors of the products of the messages and of the update are rounded to.
        block: a ``MessageBlock`` that knows the pairs.
    """
    fractional, velocity, crystal, owner, i, j, degree = around
    # Without self-edges the sum of an atom alone is zero, and may be divided by one.
    senders = (degree + 1 if self_edges else degree.clamp(min=1)).unsqueeze(-1)
    difference = fractional.index_select(0, j) - fractional.index_select(0, i)
    sin, cos = (wave.to(product) for wave in sinusoids(difference, frequencies))
    for layer in layers:
        assert isinstance(layer, Layer)
        normed = layer.norm(nodes)
        to, of, per_crystal, moving, odd, even = split(layer.message_in.weight, layer.widths, 1)
        common = linear(crystal, per_crystal, layer.message_in.bias)
        rounded = normed.to(product)
        receiver, sender = (affine(rounded, part.to(product)) for part in (to, of))
        if layer.velocity is not None:
            drift = linear(velocity, moving @ layer.velocity.weight)
            receiver, sender = receiver - drift, sender + drift
            common = common + moving @ layer.velocity.bias
        # Rounded before they are gathered to the edges, which are many.
        receiver, sender = (receiver + take_rows(common, owner)).to(product), sender.to(product)
        out = layer.message_out.weight.to(product), layer.message_out.bias.to(product)
        # Within the wide matrix rows begin at multiples of 8 or 4 bytes; the fast products of a GPU want 16.
        by_cos, by_sin = (part.to(product).contiguous() for part in (even, odd))
        total = block(receiver, sender, affine(cos, by_cos), affine(sin, by_sin), *out)
        if self_edges:
            total = total + message((receiver + sender + even.sum(1)).to(product), *out)
        nodes = layer.update(nodes, rounded, total / senders)
    return nodes


def compiled_rounds(
    layers: nn.ModuleList,
    nodes: Tensor,
    around: Surroundings,
    frequencies: int,
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
    return _compiled()(layers, _padded(nodes, more), padded, frequencies, self_edges, product)[:atoms]


def _padded(values: Tensor, more: int, value: int = 0) -> Tensor:
    """With so many further rows of that value; their width may be 0, which ``pad`` of torch 2.6 refuses."""
    return torch.cat([values, values.new_full((more, *values.shape[1:]), value)])


def _fused(
    layers: nn.ModuleList,
    nodes: Tensor,
    around: Surroundings,
    frequencies: int,
    self_edges: bool,
    product: torch.dtype,
) -> Tensor:
    def block(receiver: Tensor, sender: Tensor, even: Tensor, odd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # A compiler makes one kernel of what the hand-written block does in several passes.
        return messages_of_tensors(receiver, sender, even, odd, weight, bias, around.i, around.j)

    return rounds(layers, nodes, around, frequencies, self_edges, product, block)


@cache
def _compiled() -> Callable[..., Tensor]:
    """Made once for all networks: the weights are arguments, so that a copy of a network shares what was compiled."""
    allow_shapes()
    return torch.compile(_fused, dynamic=False)
