"""A network over all pairs of atoms of a crystal: what CSPVNet and CSPNet share, the fast evaluation included."""

from typing import ClassVar

import torch
from torch import Tensor, nn, split
from torch.nn.functional import linear

from kldm.crystals import Layout
from kldm.errors import KldmError
from kldm.interfaces import Interface, Latent
from kldm.networks.channels import Roles, answer, invariants
from kldm.networks.features import TimeEmbedding, sinusoids
from kldm.networks.message import message, message_block
from kldm.networks.parts import Layer, NodeInput, TangentHead, head


class PairNetwork(nn.Module):
    """Inputs, layers and heads; a family of networks sets the class attributes and the defaults of the arguments.

    ``evaluate`` computes the layers with about a third of the arithmetic of the readable form, ``PlainEvaluation``;
    the two are the same function of the same parameters, to rounding. The first linear map of the messages is
    the dear one; its input [h_i, h_j, crystal, Linear(v_j - v_i), sin, cos] is never built. Instead
    - the parts of h_i, h_j, crystal and v are mapped once per atom or crystal and then gathered,
    - the two linear maps that v_j - v_i goes through are multiplied into one,
    - sin and cos of the coordinate differences are computed once per call, and for i < j alone: for the other
      direction the cosine is the same and the sine changes its sign,
    - the message of an atom to itself has sin = 0 and cos = 1 and is made once per atom.

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

    Raises:
        KldmError: the interface or a size is one that the network cannot have.
    """

    self_edges: ClassVar[bool]
    tangent_head: ClassVar[TangentHead]

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
        crystal_width = sum(channel.width for channel in roles.crystals)
        self.nodes = NodeInput(roles.atoms, hidden, time_features, time_embedding)
        self.layers = nn.ModuleList(
            Layer(hidden, crystal_width, frequencies, roles.velocity is not None) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.heads = nn.ModuleList(head(channel, hidden, self.tangent_head) for channel in roles.predicts)

    def forward(self, latent: Latent, s: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Predictions by channel name at unit time ``s`` [B]."""
        roles, dtype = self.roles, self.norm.weight.dtype
        nodes = self.nodes(latent, s, layout)
        # Phases reach 2 pi * 127: below float32 they would be noise.
        fractional = latent[roles.fractional.name].to(torch.promote_types(dtype, torch.float32))
        velocity = nodes.new_zeros(layout.total, 0) if roles.velocity is None else latent[roles.velocity.name].to(dtype)
        numbers = [invariants(channel, latent[channel.name]) for channel in roles.crystals]
        crystal = torch.cat([nodes.new_zeros(len(layout), 0), *numbers], -1).to(dtype)
        nodes = self.norm(self.evaluate(nodes, fractional, velocity, crystal, layout))
        means = layout.mean(nodes)
        return {
            channel.name: answer(channel, found(means if channel.per == "crystal" else nodes), latent)
            for channel, found in zip(roles.predicts, self.heads, strict=True)
        }

    def evaluate(self, nodes: Tensor, fractional: Tensor, velocity: Tensor, crystal: Tensor, layout: Layout) -> Tensor:
        """All layers: nodes [N, H] in, nodes out.

        Args:
            fractional: [N, 3], at least float32.
            velocity: [N, 3], or [N, 0] where none is read.
            crystal: [B, C], the invariants of all channels per crystal.
        """
        pairs = layout.pairs
        # Without self-edges the sum of an atom alone is zero, and may be divided by one.
        senders = layout.num_atoms if self.self_edges else (layout.num_atoms - 1).clamp(min=1)
        count = layout.per_atom(senders).unsqueeze(-1)
        difference = fractional.index_select(0, pairs.j) - fractional.index_select(0, pairs.i)
        sin, cos = (wave.to(nodes.dtype) for wave in sinusoids(difference, self.frequencies))
        for layer in self.layers:
            assert isinstance(layer, Layer)
            normed = layer.norm(nodes)
            to, of, per_crystal, moving, odd, even = split(layer.message_in.weight, layer.widths, 1)
            common = linear(crystal, per_crystal, layer.message_in.bias)
            receiver, sender = linear(normed, to), linear(normed, of)
            if layer.velocity is not None:
                drift = linear(velocity, moving @ layer.velocity.weight)
                receiver, sender = receiver - drift, sender + drift
                common = common + moving @ layer.velocity.bias
            receiver = receiver + layout.per_atom(common)
            out = layer.message_out
            total = message_block(receiver, sender, linear(cos, even), linear(sin, odd), out.weight, out.bias, pairs)
            if self.self_edges:
                total = total + message(receiver + sender + even.sum(1), out.weight, out.bias)
            nodes = layer.update(nodes, normed, total / count)
        return nodes
