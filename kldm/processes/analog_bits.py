"""Atom types as analog bits under Euclidean diffusion."""

from collections.abc import Sequence
from typing import Literal, Self

import attrs
import torch
from torch import Tensor

from kldm.processes.vocabulary import CodeBook, narrowed
from kldm.processes.vp_euclidean import VPEuclidean
from kldm.registry import process

BITS = 7


def bits(index: Tensor) -> Tensor:
    """int64 [M], Z - 1, to its binary digits [M, 7], most significant first, as -1 and +1."""
    places = torch.arange(BITS - 1, -1, -1, device=index.device)
    return 2 * ((index.unsqueeze(-1) >> places) & 1) - 1


def _codec(process: "AnalogBits") -> CodeBook:
    return CodeBook(bits, BITS, process.elements)


@process("analog_bits.v1")
@attrs.frozen(kw_only=True)
class AnalogBits(VPEuclidean):
    """Atom types as 7 bits of Z - 1 in {-1, +1} under the VP-SDE (section 3.3, variant C-AB; Chen et al., 2023).

    The network predicts x_0. The loss takes its answer as it is; every move clamps it to [-1, 1]. 28 of the 128
    patterns of signs are no element's: decoding gives the element of the nearest code, whatever the numbers.
    Samples held to some elements decode to the nearest code of those alone, and every move takes the bits on which
    all of these agree as known.

    Args:
        schedule: alpha, sigma and beta.
        eta: noise of ``exponential``; 1 draws from the posterior (ancestral sampling), 0 is ``flow``.
        elements: atomic numbers that samples may hold; None: all.

    Raises:
        KldmError: an option out of range.
    """

    elements: tuple[int, ...] | None = None
    codec: CodeBook = attrs.field(init=False, repr=False, default=attrs.Factory(_codec, takes_self=True))
    parameterization: Literal["x0"] = attrs.field(init=False, repr=False, default="x0")

    def restricted(self, elements: Sequence[int]) -> Self:
        """The same process held to ``elements``, and to those that it is held to already."""
        return attrs.evolve(self, elements=narrowed(self.elements, elements))

    def _clean(self, start: Tensor) -> Tensor:
        return self.codec.known(start.clamp(-1, 1))
