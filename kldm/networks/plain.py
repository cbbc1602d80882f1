"""The layers of a network over pairs of atoms as the papers write them: to be read, and to test the fast form."""

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kldm.crystals import Layout
from kldm.networks.pair_network import PairNetwork
from kldm.networks.parts import Layer

if TYPE_CHECKING:
    from kldm.networks.concatenated import ConcatenatedMessages


class PlainEvaluation(PairNetwork):
    """Put before a network among the bases of a class: every message from its whole concatenated input.

    The class takes the arguments and has the parameters of that network: either loads the other's checkpoints.
    """

    @cached_property
    def messages(self) -> "ConcatenatedMessages":
        # Importing torch-geometric takes seconds: only who evaluates such a network pays for it.
        from kldm.networks.concatenated import ConcatenatedMessages

        return ConcatenatedMessages(self.frequencies)

    def bytes_per_pair(self, training: bool) -> int:
        """Torch-geometric builds the concatenated input of every layer, and training keeps it."""
        return (5 if training else 2) * super().bytes_per_pair(training)

    def evaluate(
        self,
        nodes: Tensor,
        fractional: Tensor,
        velocity: Tensor,
        crystal: Tensor,
        layout: Layout,
        product: torch.dtype,
    ) -> Tensor:
        edges, crystal = layout.edge_index, layout.per_atom(crystal)
        if self.self_edges:
            atoms = torch.arange(layout.total, device=layout.device)
            edges = torch.cat([edges, torch.stack([atoms, atoms])], 1)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            normed = layer.norm(nodes)
            with torch.autocast(nodes.device.type, dtype=product, enabled=product != nodes.dtype):
                mean = self.messages(layer, normed, fractional, velocity, crystal, edges)
            nodes = layer.update(nodes, normed.to(product), mean)
        return nodes
