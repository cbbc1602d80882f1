"""All of CSPVNet but the evaluation of its layers: parameters, inputs, heads.

The readable and the fast network derive from ``CSPVNetBase``; having every parameter here, they share checkpoints.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from kldm.crystals import Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, Interface, Latent
from kldm.networks.channels import Roles
from kldm.networks.features import TimeEmbedding, TimeFeatures


class CSPVNetBase(nn.Module, ABC):
    """Inputs, layers and heads around ``evaluate``, which the two networks implement.

    Args:
        interface: the channels to read and to predict.
        hidden: width of nodes and messages.
        layers: number of rounds of messages.
        time_features: numbers that describe the time.
        frequencies: multiples of 2 pi in the sinusoids of coordinate differences, 0 included.
        time_embedding: see ``TimeFeatures``.

    Raises:
        KldmError: the interface or a size is one that the network cannot have.
    """

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
        self.heads = nn.ModuleList(head(channel, hidden) for channel in roles.predicts)

    def forward(self, latent: Latent, s: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Predictions by channel name at unit time ``s`` [B]."""
        roles, dtype = self.roles, self.norm.weight.dtype
        nodes = self.nodes(latent, s, layout)
        # Phases reach 2 pi * 127: below float32 they would be noise.
        fractional = latent[roles.fractional.name].to(torch.promote_types(dtype, torch.float32))
        velocity = nodes.new_zeros(layout.total, 0) if roles.velocity is None else latent[roles.velocity.name].to(dtype)
        crystal = torch.cat([nodes.new_zeros(len(layout), 0), *(latent[c.name] for c in roles.crystals)], -1).to(dtype)
        nodes = self.norm(self.evaluate(nodes, fractional, velocity, crystal, layout))
        means = layout.mean(nodes)
        return {
            channel.name: answer(means if channel.per == "crystal" else nodes)
            for channel, answer in zip(roles.predicts, self.heads, strict=True)
        }

    @abstractmethod
    def evaluate(self, nodes: Tensor, fractional: Tensor, velocity: Tensor, crystal: Tensor, layout: Layout) -> Tensor:
        """All layers: nodes [N, H] in, nodes out.

        Args:
            fractional: [N, 3], at least float32.
            velocity: [N, 3], or [N, 0] where none is read.
            crystal: [B, C], all real channels per crystal.
        """


class NodeInput(nn.Module):
    """Linear([embedding of each channel per atom, time features]), [N, H].

    A token is embedded by a table and real numbers by a linear map, each to the hidden width.
    """

    def __init__(
        self, channels: tuple[Channel, ...], hidden: int, time_features: int, time_embedding: TimeEmbedding
    ) -> None:
        super().__init__()
        self.channels = channels
        self.embeddings = nn.ModuleList(
            nn.Embedding(channel.width, hidden) if channel.kind == "token" else nn.Linear(channel.width, hidden)
            for channel in channels
        )
        self.time = TimeFeatures(time_features, time_embedding)
        self.combine = nn.Linear(len(channels) * hidden + time_features, hidden)
        self.widths = [hidden] * len(channels) + [time_features]

    def forward(self, latent: Latent, s: Tensor, layout: Layout) -> Tensor:
        # The linear map is applied part by part, to the table and to the times of the crystals before they spread
        # over the atoms.
        *weights, time_weight = torch.split(self.combine.weight, self.widths, 1)
        nodes = layout.per_atom(functional.linear(self.time(s), time_weight, self.combine.bias))
        for channel, embedding, weight in zip(self.channels, self.embeddings, weights, strict=True):
            values = latent[channel.name]
            if isinstance(embedding, nn.Embedding):
                nodes = nodes + functional.linear(embedding.weight, weight).index_select(0, values)
            else:
                nodes = nodes + functional.linear(embedding(values.to(weight.dtype)), weight)
        return nodes


class Layer(nn.Module):
    """Parameters of one round of messages, and the update of the nodes.

    message = MLP2([h_i, h_j, crystal, Linear(v_j - v_i), sin, cos]), mean over j;  h_i <- h_i + MLP2([h_i, mean]).
    The h that enters is layer-normalised; both layers of both MLPs end in SiLU. The columns of ``message_in`` stand
    in the order above and are ``widths`` wide.
    """

    def __init__(self, hidden: int, crystal_width: int, frequencies: int, velocity: bool) -> None:
        super().__init__()
        geometry = 3 * frequencies
        moving = 2 * geometry if velocity else 0
        self.widths = [hidden, hidden, crystal_width, moving, geometry, geometry]
        self.norm = nn.LayerNorm(hidden)
        self.velocity = nn.Linear(3, moving) if velocity else None
        self.message_in = nn.Linear(sum(self.widths), hidden)
        self.message_out = nn.Linear(hidden, hidden)
        self.update_in = nn.Linear(2 * hidden, hidden)
        self.update_out = nn.Linear(hidden, hidden)

    def update(self, nodes: Tensor, normed: Tensor, mean: Tensor) -> Tensor:
        """h_i + MLP2([normed h_i, mean message])."""
        inner = functional.silu(self.update_in(torch.cat([normed, mean.to(normed.dtype)], -1)))
        return nodes + functional.silu(self.update_out(inner))


def head(channel: Channel, hidden: int) -> nn.Module:
    """What answers for one channel: an MLP for velocities and scores, else one linear map.

    No output bias where the answer should carry no constant of its own: tangent channels (whose mean over the atoms
    the process removes anyway) and channels of the crystal.
    """
    if channel.kind == "tangent":
        return nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, channel.width, bias=False))
    return nn.Linear(hidden, channel.width, bias=channel.per == "atom")
