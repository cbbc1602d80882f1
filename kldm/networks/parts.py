"""The parameters of a network over pairs of atoms: its input, its layers, its heads."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kldm.crystals import Layout
from kldm.interfaces import Channel, Latent
from kldm.networks.features import TimeEmbedding, TimeFeatures, distinct
from kldm.networks.products import affine

TangentHead = Literal["mlp", "linear"]


class NodeInput(nn.Module):
    """Linear([embedding of each channel per atom, time features]), [N, H].

    A token is embedded by a table and real numbers by a linear map, each to the hidden width.
    """

    def __init__(
        self,
        channels: tuple[Channel, ...],
        hidden: int,
        time_features: int,
        time_embedding: TimeEmbedding,
        log_noise: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.embeddings = nn.ModuleList(
            nn.Embedding(channel.width, hidden) if channel.kind == "token" else nn.Linear(channel.width, hidden)
            for channel in channels
        )
        self.time = TimeFeatures(time_features, time_embedding, log_noise)
        self.combine = nn.Linear(len(channels) * hidden + time_features, hidden)
        self.widths = [hidden] * len(channels) + [time_features]

    def forward(self, latent: Latent, s: Tensor, layout: Layout) -> Tensor:
        # The linear map is applied part by part, to the table and to the times of the crystals before they spread
        # over the atoms.
        *weights, time_weight = torch.split(self.combine.weight, self.widths, 1)
        times = functional.linear(self.time(distinct(s)), time_weight, self.combine.bias)
        nodes = times.expand(layout.total, -1) if len(times) == 1 else layout.per_atom(times)
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
        """h_i + MLP2([normed h_i, mean message]), the factors of both products of the type of ``normed``."""
        values = torch.cat([normed, mean.to(normed.dtype)], -1)
        for linear in (self.update_in, self.update_out):
            weight, bias = linear.weight.to(values.dtype), linear.bias.to(values.dtype)
            values = affine(values, weight, bias, activated=True)
        return nodes + values


def head(channel: Channel, hidden: int, tangent: TangentHead) -> nn.Module:
    """What answers for one channel: for velocities and scores as ``tangent`` says, else one linear map.

    No output bias where the answer should carry no constant of its own: tangent channels (whose mean over the atoms
    the process removes anyway) and channels of the crystal.
    """
    if channel.kind == "tangent" and tangent == "mlp":
        return nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, channel.width, bias=False))
    return nn.Linear(hidden, channel.width, bias=channel.per == "atom" and channel.kind != "tangent")
