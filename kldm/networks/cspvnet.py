"""CSPVNet, the network of KLDM (Appendix I.2), as one reads it there."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from kldm.crystals import Layout
from kldm.execution import Execution
from kldm.interfaces import Channel, Interface, Latent
from kldm.networks import fast
from kldm.networks.channels import Roles, answer
from kldm.networks.features import TimeEmbedding, TimeFeatures, sinusoids
from kldm.registry import network
from kldm.runtime.rows import add_rows, take_rows
from kldm.validators import one_of, validate, within

TangentHead = Literal["mlp", "linear"]


@network("cspvnet.v1")
class CSPVNet(nn.Module):
    """The network of KLDM (Appendix I.2): messages between all atoms of a crystal, which carry velocities too.

    ``Embedding`` makes h_i of every atom, ``layers`` rounds of messages (``Layer``) change it, and after a last layer
    norm a head for each channel predicts from h_i, or for a channel of the crystal from the mean of h_i over its atoms.

    This file is the network as the paper writes it, and ``execution.messages = "plain"`` computes it so. By default
    ``kldm.networks.fast`` computes the same function of the same parameters, to rounding, with a third of the
    arithmetic. Under autocast the factors of the products of the layers are rounded; embeddings, coordinates, layer
    norms, sums over neighbours and heads keep the type of the weights.

    Args:
        interface: exactly one periodic channel and at most one tangent channel of width 3 per atom; token and real
            channels per atom; real and matrix channels per crystal. Predicts tangent, real and token channels per atom,
            real channels per crystal and matrix channels that are read too.
        hidden: width H of h and of the messages. This and the next three defaults are the paper's.
        layers: number of rounds of messages.
        time_features: how many numbers describe the time.
        frequencies: number of multiples of 2 pi in the sinusoids of coordinate differences, 0 included.
        time_embedding: see ``TimeFeatures``.
        self_edges: whether an atom sends a message to itself too.
        tangent_head: what predicts velocities and scores: two layers, or one linear map.

    Raises:
        KldmError: the interface is one that the network cannot serve, or an option is out of its range.
    """

    def __init__(
        self,
        interface: Interface,
        /,
        *,
        hidden: int = 512,
        layers: int = 6,
        time_features: int = 256,
        frequencies: int = 128,
        time_embedding: TimeEmbedding = "fourier",
        self_edges: bool = False,
        tangent_head: TangentHead = "mlp",
    ) -> None:
        super().__init__()
        for name, value, most in (
            ("hidden", hidden, 10**5),
            ("layers", layers, 10**3),
            ("frequencies", frequencies, 10**5),
        ):
            validate(name, value, within(1, most))
        validate("tangent_head", tangent_head, one_of(*get_args(TangentHead)))
        self.roles = roles = Roles.of(interface)
        self.frequencies, self.self_edges, self.execution = frequencies, self_edges, Execution()
        self.nodes = Embedding(roles.atoms, hidden, time_features, time_embedding, interface.log_noise)
        rounds = (Layer(hidden, roles.crystal_width, frequencies, roles.velocity is not None) for _ in range(layers))
        self.layers = cast("Sequence[Layer]", nn.ModuleList(rounds))
        self.norm = nn.LayerNorm(hidden)
        self.heads = nn.ModuleList(head(channel, hidden, tangent_head) for channel in roles.predicts)

    def forward(self, latent: Latent, s: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Predictions by channel name, [N, C] per atom or [B, C] per crystal, at unit times ``s`` [B]."""
        encode = self.encode if self.execution.messages == "plain" else partial(fast.encode, self)
        h = encode(latent, s, layout)
        with torch.autocast(s.device.type, enabled=False):
            h = self.norm(h)
            mean = layout.mean(h)
            return {
                channel.name: answer(channel, module(mean if channel.per == "crystal" else h), latent)
                for channel, module in zip(self.roles.predicts, self.heads, strict=True)
            }

    def encode(self, latent: Latent, s: Tensor, layout: Layout) -> Tensor:
        """h [N, H] after all layers."""
        with torch.autocast(s.device.type, enabled=False):
            h: Tensor = self.nodes(latent, s, layout)
        fractional, velocity, crystal = self.roles.geometry(latent, layout, h.dtype)
        neighbours = self.neighbours(layout)
        for layer in self.layers:
            h = layer(h, fractional, velocity, layout.per_atom(crystal), neighbours)
        return h

    def neighbours(self, layout: Layout) -> "Neighbours":
        """Every ordered pair of atoms of a crystal, and with ``self_edges`` every atom with itself."""
        (j, i), degree = layout.edge_index, layout.pairs.degree
        if self.self_edges:
            atoms = torch.arange(layout.total, device=layout.device)
            i, j, degree = torch.cat([i, atoms]), torch.cat([j, atoms]), degree + 1
        return Neighbours(i, j, degree.clamp(min=1).unsqueeze(-1))

    def execute(self, execution: Execution) -> None:
        """Choose how the network is computed from now on."""
        self.execution = execution

    def bytes_per_pair(self, training: bool) -> int:
        """About eight rows of the hidden width, and the sinusoids with their arguments; in training at most three more
        rows for each layer, which the backward pass needs. This includes a handful of atoms per pair. The plain form
        builds the concatenated input of every layer, and training keeps it."""
        rows = (3 * len(self.layers) if training else 0) + 8
        plain = self.execution.messages == "plain"
        return ((5 if training else 2) if plain else 1) * 4 * (rows * len(self.norm.weight) + 12 * self.frequencies)


class Embedding(nn.Module):
    """h_i = Linear([embedding of each channel of atom i, features of the time]).

    A token is embedded by a table and real numbers by a linear map, each to the hidden width.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        hidden: int,
        time_features: int,
        time_embedding: TimeEmbedding,
        log_noise: Callable[[Tensor], Tensor] | None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.embeddings = nn.ModuleList(
            nn.Embedding(channel.width, hidden) if channel.kind == "token" else nn.Linear(channel.width, hidden)
            for channel in channels
        )
        self.time = TimeFeatures(time_features, time_embedding, log_noise)
        self.combine = nn.Linear(len(channels) * hidden + time_features, hidden)

    def forward(self, latent: Latent, s: Tensor, layout: Layout) -> Tensor:
        """h [N, H] from the noisy channels at times ``s`` [B]."""
        dtype = self.combine.weight.dtype
        values = (latent[c.name] if c.kind == "token" else latent[c.name].to(dtype) for c in self.channels)
        parts = [embedding(value) for embedding, value in zip(self.embeddings, values, strict=True)]
        h: Tensor = self.combine(torch.cat([*parts, layout.per_atom(self.time(s))], -1))
        return h


class Neighbours(NamedTuple):
    """Who sends a message to whom. Compilers support named tuples, but no other records.

    Attributes:
        i, j: int64 [E], the receiver and the sender of every message.
        degree: [N, 1], how many messages an atom gets; 1 where it gets none.
    """

    i: Tensor
    j: Tensor
    degree: Tensor


class Layer(nn.Module):
    """One round of messages, on layer-normalised h:

        m_ij = MLP([h_i, h_j, lattice, Linear(v_j - v_i), sin 2 pi k (f_j - f_i), cos 2 pi k (f_j - f_i)])
        h_i <- h_i + MLP([h_i, mean over j of m_ij])

    The MLPs have two layers, both with SiLU. The mean of an atom without neighbours is 0. The paper prints a sum; the
    authors' code, as DiffCSP's, takes the mean. All channels of the crystal take the place of the lattice.

    Args:
        hidden: H.
        crystal: how many numbers describe the crystal.
        frequencies: see ``sinusoids``.
        velocity: whether a velocity is read; it is mapped to as many numbers as there are sinusoids.

    Attributes:
        widths: of the inputs of the first linear map of m_ij, in their order.
    """

    def __init__(self, hidden: int, crystal: int, frequencies: int, velocity: bool) -> None:
        super().__init__()
        waves = 3 * frequencies
        moving = 2 * waves if velocity else 0
        self.frequencies, self.widths = frequencies, [hidden, hidden, crystal, moving, waves, waves]
        self.norm = nn.LayerNorm(hidden)
        self.velocity = nn.Linear(3, moving) if velocity else None
        self.message_in = nn.Linear(sum(self.widths), hidden)
        self.message_out = nn.Linear(hidden, hidden)
        self.update_in = nn.Linear(2 * hidden, hidden)
        self.update_out = nn.Linear(hidden, hidden)

    def forward(self, h: Tensor, f: Tensor, v: Tensor, lattice: Tensor, neighbours: Neighbours) -> Tensor:
        """h [N, H] after this round, from positions [N, 3], velocities [N, 3] and the numbers of each atom's crystal
        [N, C]."""
        i, j, degree = neighbours
        normed = self.norm(h)
        inputs = [take_rows(normed, i), take_rows(normed, j), take_rows(lattice, i)]
        if self.velocity is not None:
            inputs.append(self.velocity(take_rows(v, j) - take_rows(v, i)))
        inputs += sinusoids(take_rows(f, j) - take_rows(f, i), self.frequencies)
        edge = torch.cat([values.to(h.dtype) for values in inputs], -1)
        messages = silu(self.message_out(silu(self.message_in(edge))))
        mean = add_rows(messages.to(h.dtype), i, len(h)) / degree
        return h + silu(self.update_out(silu(self.update_in(torch.cat([normed, mean], -1)))))


def head(channel: Channel, hidden: int, tangent: TangentHead) -> nn.Module:
    """The module that predicts a channel: for velocities and scores as ``tangent`` says, else one linear map.

    There is no bias where the prediction should carry no constant of its own: in tangent channels (whose mean over the
    atoms the process removes anyway) and in channels of the crystal.
    """
    if channel.kind == "tangent" and tangent == "mlp":
        return nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, channel.width, bias=False))
    return nn.Linear(hidden, channel.width, bias=channel.per == "atom" and channel.kind != "tangent")
