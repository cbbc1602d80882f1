"""A network over all pairs of atoms of a crystal: what CSPVNet and CSPNet share, the fast evaluation included."""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from kldm.crystals import Layout
from kldm.errors import KldmError
from kldm.execution import Execution
from kldm.interfaces import Interface, Latent
from kldm.networks.channels import Roles, answer, invariants
from kldm.networks.features import TimeEmbedding
from kldm.networks.message import MESSAGE_BLOCKS
from kldm.networks.parts import Layer, NodeInput, TangentHead, head
from kldm.networks.rounds import Surroundings, compiled_rounds, rounds


class PairNetwork(nn.Module):
    """Inputs, layers and heads; a family of networks sets the class attributes and the defaults of the arguments.

    ``evaluate`` computes the layers with about a third of the arithmetic of the readable form, ``PlainEvaluation``
    (see ``rounds``); the two are the same function of the same parameters, to rounding. Under autocast the factors of
    the products of the layers are rounded; nodes, their norms and the sums over edges keep float32, as inputs, heads
    and coordinates do.

    Args:
        interface: exactly one periodic channel and at most one tangent channel of width 3 per atom; token and real
            channels per atom; real and matrix channels per crystal. Predicts tangent, real and token channels per atom,
            real ones per crystal and matrix ones that are read too.
        hidden: width of nodes and messages.
        layers: number of rounds of messages.
        time_features: numbers that describe the time.
        frequencies: multiples of 2 pi in the sinusoids of coordinate differences, 0 included.
        time_embedding: see ``TimeFeatures``.

    Attributes:
        self_edges: whether an atom is among those that it gets messages from.
        tangent_head: what predicts tangent channels: two layers, or one linear map.
        bytes_in_cache: what one array over the edges of a batch may take on a CPU without gradients; a larger batch is
            computed in parts, as passes over arrays that leave the cache cost more than the products.

    Raises:
        KldmError: the interface or a size is one that the network cannot have.
    """

    self_edges: ClassVar[bool]
    tangent_head: ClassVar[TangentHead]
    bytes_in_cache: int = 12 * 10**6

    def __init__(
        self,
        interface: Interface,
        hidden: int,
        layers: int,
        time_features: int,
        frequencies: int,
        time_embedding: TimeEmbedding,
    ) -> None:
        super().__init__()
        for name, value in (("hidden", hidden), ("layers", layers), ("frequencies", frequencies)):
            if value < 1:
                raise KldmError(f"{name} is {value}", remedy="give a whole number, at least 1")
        self.roles = roles = Roles.of(interface)
        self.frequencies = frequencies
        self.execution = Execution()
        crystal_width = sum(channel.width for channel in roles.crystals)
        self.nodes = NodeInput(roles.atoms, hidden, time_features, time_embedding, interface.log_noise)
        self.layers = nn.ModuleList(
            Layer(hidden, crystal_width, frequencies, roles.velocity is not None) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.heads = nn.ModuleList(head(channel, hidden, self.tangent_head) for channel in roles.predicts)

    def forward(self, latent: Latent, s: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Predictions by channel name at unit time ``s`` [B]."""
        kind = s.device.type
        product = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.norm.weight.dtype
        with torch.autocast(kind, enabled=False):
            return self._predict(latent, s, layout, product)

    def _predict(self, latent: Latent, s: Tensor, layout: Layout, product: torch.dtype) -> dict[str, Tensor]:
        roles, dtype = self.roles, self.norm.weight.dtype
        nodes = self.nodes(latent, s, layout)
        # Phases reach 2 pi * 127: below float32 they would be noise.
        fractional = latent[roles.fractional.name].to(torch.promote_types(dtype, torch.float32))
        velocity = nodes.new_zeros(layout.total, 0) if roles.velocity is None else latent[roles.velocity.name].to(dtype)
        numbers = [invariants(channel, latent[channel.name]) for channel in roles.crystals]
        crystal = torch.cat([nodes.new_zeros(len(layout), 0), *numbers], -1).to(dtype)
        nodes = self.norm(self.evaluate(nodes, fractional, velocity, crystal, layout, product))
        means = layout.mean(nodes)
        return {
            channel.name: answer(channel, found(means if channel.per == "crystal" else nodes), latent)
            for channel, found in zip(roles.predicts, self.heads, strict=True)
        }

    def evaluate(
        self,
        nodes: Tensor,
        fractional: Tensor,
        velocity: Tensor,
        crystal: Tensor,
        layout: Layout,
        product: torch.dtype,
    ) -> Tensor:
        """All layers: nodes [N, H] in, nodes out; on a CPU, without gradients, in parts that its cache can hold.

        Args:
            fractional: [N, 3], at least float32.
            velocity: [N, 3], or [N, 0] where none is read.
            crystal: [B, C], the invariants of all channels per crystal.
            layout: of the batch.
            product: type that the factors of the products of the layers are rounded to.
        """
        if nodes.device.type == "cpu" and not torch.is_grad_enabled():
            parts = layout.parts(max(1, self.bytes_in_cache // (nodes.shape[1] * product.itemsize)))
            if len(parts) > 1:
                of_parts = (
                    self.evaluate(nodes[atoms], fractional[atoms], velocity[atoms], crystal[crystals], part, product)
                    for atoms, crystals, part in parts
                )
                return torch.cat(list(of_parts))
        pairs, kind = layout.pairs, (self.frequencies, self.self_edges, product)
        around = Surroundings(fractional, velocity, crystal, layout.owner, pairs.i, pairs.j, pairs.degree)
        if self.execution.compile:
            return compiled_rounds(self.layers, nodes, around, *kind)
        block = partial(MESSAGE_BLOCKS[self.execution.messages], pairs=pairs)
        return rounds(self.layers, nodes, around, *kind, block)

    def bytes_per_pair(self, training: bool) -> int:
        """In training at most three rows of the hidden width for each layer, kept for the backward pass; beside them
        about eight in use, and the sinusoids with what they are made of. A handful of atoms per pair is in it."""
        rows = (3 * len(self.layers) if training else 0) + 8
        return 4 * (rows * len(self.norm.weight) + 12 * self.frequencies)

    def execute(self, execution: Execution) -> None:
        self.execution = execution
