"""Which channel plays which part in a network over pairs of atoms. Kinds decide it, never names."""

from typing import NamedTuple

import attrs
import torch
from torch import Tensor

from kldm.crystals import Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, Interface, Latent

_SHAPES = {"periodic": ("atom", 3), "tangent": ("atom", 3), "matrix": ("crystal", 9)}


class Geometry(NamedTuple):
    """What messages are made from besides the states of atoms. Compilers support named tuples, but no other records.

    Attributes:
        fractional: [N, 3], at least float32: phases reach 2 pi * 127, below float32 they would be noise.
        velocity: [N, 3], or [N, 0] if none is read.
        crystal: [B, C], the invariants of all channels per crystal.
    """

    fractional: Tensor
    velocity: Tensor
    crystal: Tensor


@attrs.frozen
class Roles:
    """The channels of an interface by the part that they play.

    Attributes:
        fractional: the periodic channel [N, 3], seen through differences between atoms.
        velocity: the tangent channel [N, 3], seen through differences too; None if none is read.
        atoms: token [N] and real [N, C] channels per atom, inputs of the nodes.
        crystals: real [B, C] and matrix [B, 9] channels, whose ``invariants`` are inputs of every edge.
        predicts: the channels of the heads; a matrix channel is read under the same name.
    """

    fractional: Channel
    velocity: Channel | None
    atoms: tuple[Channel, ...]
    crystals: tuple[Channel, ...]
    predicts: tuple[Channel, ...]

    @classmethod
    def of(cls, interface: Interface) -> "Roles":
        """Sort the channels. Raises ``KldmError`` if the interface asks for what such a network cannot do."""
        reads = interface.reads
        for channel in (*reads, *interface.predicts):
            _check(channel)
        periodic = [channel for channel in reads if channel.kind == "periodic"]
        tangent = [channel for channel in reads if channel.kind == "tangent"]
        if len(periodic) != 1:
            raise KldmError(
                f"the network needs exactly one periodic channel, but got {len(periodic)}",
                remedy="give the model one process for the coordinates",
            )
        if len(tangent) > 1:
            raise KldmError(f"the network reads at most one tangent channel, but got {_names(tangent)}")
        for channel in interface.predicts:
            if channel.kind == "periodic":
                raise KldmError(
                    f"the network cannot predict the periodic channel {channel.name!r}",
                    remedy="let the process ask for a tangent channel (a velocity or score)",
                )
            if channel.kind == "matrix" and channel not in reads:
                raise KldmError(
                    f"the network predicts the matrix channel {channel.name!r} as a multiple of the one that it reads "
                    "under that name, but it reads none",
                    remedy="let the process read it too",
                )
        return cls(
            fractional=periodic[0],
            velocity=tangent[0] if tangent else None,
            atoms=tuple(c for c in reads if c.per == "atom" and c.kind in ("token", "real")),
            crystals=tuple(c for c in reads if c.per == "crystal"),
            predicts=interface.predicts,
        )

    @property
    def crystal_width(self) -> int:
        """How many numbers of each crystal there are."""
        return sum(channel.width for channel in self.crystals)

    def geometry(self, latent: Latent, layout: Layout, dtype: torch.dtype) -> Geometry:
        """The channels of positions, velocities and crystals, of the type of the weights."""
        fractional = latent[self.fractional.name].to(torch.promote_types(dtype, torch.float32))
        empty = torch.zeros(0, dtype=dtype, device=layout.device)
        velocity = empty.view(layout.total, 0) if self.velocity is None else latent[self.velocity.name].to(dtype)
        numbers = [invariants(channel, latent[channel.name]) for channel in self.crystals]
        return Geometry(fractional, velocity, torch.cat([empty.view(len(layout), 0), *numbers], -1).to(dtype))


def invariants(channel: Channel, values: Tensor) -> Tensor:
    """The numbers of a channel per crystal that do not change when it is rotated, [B, C] to [B, C].

    For a matrix L they are the nine scalar products of its rows, L L^T (DiffCSP, section 4.2); real numbers stay.
    """
    if channel.kind != "matrix":
        return values
    rows = values.reshape(-1, 3, 3)
    # No matmul: autocast would round it to bfloat16.
    return (rows.unsqueeze(-2) * rows.unsqueeze(-3)).sum(-1).flatten(1)


def answer(channel: Channel, output: Tensor, latent: Latent) -> Tensor:
    """The prediction for a channel from the output of its head, which sees only invariants.

    For a matrix channel it is M L, with the 3 x 3 output M and the matrix L that is read under the same name, so that
    it rotates with L. For any other channel it is the output.
    """
    if channel.kind != "matrix":
        return output
    factor, rows = output.reshape(-1, 3, 3), latent[channel.name].to(output.dtype).reshape(-1, 3, 3)
    return (factor.unsqueeze(-1) * rows.unsqueeze(-3)).sum(-2).flatten(1)


def _check(channel: Channel) -> None:
    own = channel.per, channel.width
    per, width = _SHAPES.get(channel.kind, own)
    if own != (per, width):
        raise KldmError(
            f"the network takes {channel.kind} channels of width {width} per {per}, but "
            f"{channel.name!r} has width {channel.width} per {channel.per}"
        )
    if channel.kind == "token" and channel.per == "crystal":
        raise KldmError(
            f"the network does not support the token channel {channel.name!r} per crystal",
            remedy="make it a real channel or one per atom",
        )


def _names(channels: list[Channel]) -> str:
    return ", ".join(repr(channel.name) for channel in channels)
