"""The state of all atoms after all layers."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn, split
from torch.nn.functional import linear

from kldm.crystals import Layout
from kldm.execution import Messages
from kldm.interfaces import Latent
from kldm.networks.channels import Geometry
from kldm.networks.fast.compiled import compiled_rounds
from kldm.networks.fast.messages import MessageBlock, autograd_messages, manual_messages
from kldm.networks.fast.rounds import Inputs, rounds
from kldm.networks.fast.triton_messages import triton_messages

if TYPE_CHECKING:
    from kldm.networks.cspvnet import CSPVNet, Embedding

MESSAGE_BLOCKS: Mapping[Messages, MessageBlock] = {
    "manual": manual_messages,
    "triton": triton_messages,
    "autograd": autograd_messages,
}

BYTES_IN_CACHE = 12 * 10**6
"""What one array over the edges of a batch may take on a CPU without gradients. A larger batch is computed in parts, as
passes over arrays that leave the cache cost more than the products."""


def encode(network: "CSPVNet", latent: Latent, s: Tensor, layout: Layout) -> Tensor:
    """``network.encode(latent, s, layout)``, [N, H], computed as ``network.execution`` says.

    Under autocast the factors of the products of the layers are rounded; nodes, their norms and the sums over edges
    keep float32, as embeddings and coordinates do.
    """
    kind, dtype = s.device.type, network.norm.weight.dtype
    product = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
    with torch.autocast(kind, enabled=False):
        nodes = embed(network.nodes, latent, s, layout)
        return _all_layers(network, nodes, network.roles.geometry(latent, layout, dtype), layout, product)


def embed(embedding: "Embedding", latent: Latent, s: Tensor, layout: Layout) -> Tensor:
    """``embedding(latent, s, layout)``, [N, H].

    The linear map is applied part by part: to the table of a token and to the times of the crystals before they spread
    over the atoms.
    """
    combine = embedding.combine
    widths = [combine.out_features] * len(embedding.channels)
    *weights, time_weight = split(combine.weight, [*widths, combine.in_features - sum(widths)], 1)
    times = linear(embedding.time(distinct(s)), time_weight, combine.bias)
    nodes = times.expand(layout.total, -1) if len(times) == 1 else layout.per_atom(times)
    for channel, part, weight in zip(embedding.channels, embedding.embeddings, weights, strict=True):
        values = latent[channel.name]
        if isinstance(part, nn.Embedding):
            nodes = nodes + linear(part.weight, weight).index_select(0, values)
        else:
            nodes = nodes + linear(part(values.to(weight.dtype)), weight)
    return nodes


def distinct(s: Tensor) -> Tensor:
    """Only the first of the times [B] if they are one number expanded, as in a sampling step.

    The stride shows this, so that no value has to be read.
    """
    return s[:1] if s.stride(0) == 0 else s


def _all_layers(network: "CSPVNet", nodes: Tensor, geometry: Geometry, layout: Layout, product: torch.dtype) -> Tensor:
    """All layers: nodes [N, H] in, nodes out; on a CPU, without gradients, in parts that fit into its cache."""
    if nodes.device.type == "cpu" and not torch.is_grad_enabled():
        parts = layout.parts(max(1, BYTES_IN_CACHE // (nodes.shape[1] * product.itemsize)))
        if len(parts) > 1:
            fractional, velocity, crystal = geometry
            parts_of_nodes = [
                _one_part(network, nodes[at], Geometry(fractional[at], velocity[at], crystal[of]), part, product)
                for at, of, part in parts
            ]
            return torch.cat(parts_of_nodes)
    return _one_part(network, nodes, geometry, layout, product)


def _one_part(network: "CSPVNet", nodes: Tensor, geometry: Geometry, layout: Layout, product: torch.dtype) -> Tensor:
    pairs = layout.pairs
    inputs = Inputs(*geometry, layout.owner, pairs.i, pairs.j, pairs.degree)
    if network.execution.compile:
        return compiled_rounds(network.layers, nodes, inputs, network.self_edges, product)
    block = partial(MESSAGE_BLOCKS[network.execution.messages], pairs=pairs)
    return rounds(network.layers, nodes, inputs, network.self_edges, product, block)
