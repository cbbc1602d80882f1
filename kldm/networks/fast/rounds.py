"""The rounds of messages with about a third of the arithmetic of ``Layer``."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, split
from torch.nn.functional import linear

from kldm.networks.fast.messages import message
from kldm.networks.fast.products import affine
from kldm.networks.features import sinusoids
from kldm.runtime.rows import take_rows

if TYPE_CHECKING:
    from kldm.networks.cspvnet import Layer


class Inputs(NamedTuple):
    """What the layers read besides the nodes. Compilers support named tuples, but no other records.

    Attributes:
        fractional, velocity, crystal: see ``Geometry``.
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
    layers: "Sequence[Layer]",
    nodes: Tensor,
    inputs: Inputs,
    self_edges: bool,
    product: torch.dtype,
    block: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """All layers: nodes [N, H] in, nodes out.

    The first linear map of the messages is the expensive one. Its input [h_i, h_j, lattice, Linear(v_j - v_i), sin,
    cos] is never built. Instead
    - the parts of h_i, h_j, crystal and v are mapped once per atom or crystal and then gathered,
    - the two linear maps that v_j - v_i goes through are multiplied into one,
    - sin and cos of the coordinate differences are computed once per call, and only for i < j: for the other
      direction the cosine is the same and the sine changes its sign,
    - the message of an atom to itself has sin = 0 and cos = 1 and is made once per atom.

    Args:
        layers: their parameters.
        nodes: [N, H].
        inputs: the rest of the batch.
        self_edges: whether an atom sends a message to itself too.
        product: type that the factors of the products of the messages and of the update are rounded to.
        block: a ``MessageBlock`` that knows the pairs.
    """
    fractional, velocity, crystal, owner, i, j, degree = inputs
    # Without self-edges the sum of a single atom is zero, and may be divided by one.
    senders = (degree + 1 if self_edges else degree.clamp(min=1)).unsqueeze(-1)
    difference = fractional.index_select(0, j) - fractional.index_select(0, i)
    sin, cos = (wave.to(product) for wave in sinusoids(difference, layers[0].frequencies))
    for layer in layers:
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
        nodes = _updated(layer, nodes, rounded, total / senders)
    return nodes


def _updated(layer: "Layer", nodes: Tensor, normed: Tensor, mean: Tensor) -> Tensor:
    """h_i + MLP([normed h_i, mean message]), the factors of both products of the type of ``normed``."""
    values = torch.cat([normed, mean.to(normed.dtype)], -1)
    for update in (layer.update_in, layer.update_out):
        values = affine(values, update.weight.to(values.dtype), update.bias.to(values.dtype), activated=True)
    return nodes + values
