"""Codec of the lattice: its three vectors as the matrix that DiffCSP diffuses."""

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, lattice_matrix
from kldm.interfaces import Channel
from kldm.registry import codec


@codec("matrix.v1")
@attrs.frozen(kw_only=True)
class Matrix:
    """The lattice vectors in angstrom, row by row (Jiao et al., 2023): any nine numbers give lengths and angles.

    Encoded in the setting of ``lattice_matrix``. Decoding keeps the lengths of the rows and the angles between them: a
    matrix and the same one turned or mirrored decode to the same cell, so the crystal of a left-handed matrix comes out
    as its mirror image. Numbers that form no cell (rows of length 0, parallel or coplanar rows, not-a-number) decode
    to lengths and angles that form none either.
    """

    @property
    def channel(self) -> Channel:
        return Channel("lattice", 9, "crystal", "matrix")

    def encode(self, crystals: Crystals) -> Tensor:
        return lattice_matrix(crystals.lattice).flatten(1)

    def decode(self, values: Tensor, into: Crystals) -> Crystals:
        rows = values.reshape(-1, 3, 3)
        # Unlike the root of the sum of squares, hypot neither overflows nor vanishes before the length itself does.
        lengths = torch.hypot(torch.hypot(rows[..., 0], rows[..., 1]), rows[..., 2])
        a, b, c = (rows / lengths.clamp(min=torch.finfo(rows.dtype).tiny).unsqueeze(-1)).unbind(-2)
        angles = torch.stack([_angle(b, c), _angle(a, c), _angle(a, b)], -1)
        return attrs.evolve(into, lattice=torch.cat([lengths, angles], -1))


def _angle(u: Tensor, v: Tensor) -> Tensor:
    """Angle in [0, pi] between unit vectors [B, 3]; exact to rounding also near 0 and pi, where arccos is not."""
    return torch.atan2(torch.linalg.vector_norm(torch.linalg.cross(u, v), dim=-1), (u * v).sum(-1))
