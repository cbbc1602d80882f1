"""The message part of a layer as a torch-geometric convolution."""

import torch
from torch import Tensor
from torch.nn.functional import silu
from torch_geometric.nn import MessagePassing

from kldm.networks.features import sinusoids
from kldm.networks.parts import Layer


class ConcatenatedMessages(MessagePassing):  # type: ignore[misc]  # torch-geometric is untyped
    """Mean over j of MLP2([h_i, h_j, crystal, Linear(v_j - v_i), sin, cos]), with the parameters of a ``Layer``.

    Args:
        frequencies: see ``sinusoids``.
    """

    def __init__(self, frequencies: int) -> None:
        super().__init__(aggr="mean")
        self.frequencies = frequencies

    def forward(
        self,
        layer: Layer,
        nodes: Tensor,
        fractional: Tensor,
        velocity: Tensor,
        crystal: Tensor,
        edge_index: Tensor,
    ) -> Tensor:
        """[N, H] from nodes [N, H], fractional [N, 3], velocity [N, 3] or [N, 0], crystal [N, C], edges [2, E]."""
        mean: Tensor = self.propagate(
            edge_index, layer=layer, nodes=nodes, fractional=fractional, velocity=velocity, crystal=crystal
        )
        return mean

    def message(
        self,
        layer: Layer,
        nodes_i: Tensor,
        nodes_j: Tensor,
        fractional_i: Tensor,
        fractional_j: Tensor,
        velocity_i: Tensor,
        velocity_j: Tensor,
        crystal_i: Tensor,
    ) -> Tensor:
        parts = [nodes_i, nodes_j, crystal_i]
        if layer.velocity is not None:
            parts.append(layer.velocity(velocity_j - velocity_i))
        parts += [wave.to(nodes_i.dtype) for wave in sinusoids(fractional_j - fractional_i, self.frequencies)]
        return silu(layer.message_out(silu(layer.message_in(torch.cat(parts, -1)))))
