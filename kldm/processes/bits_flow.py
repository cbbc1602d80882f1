"""Flow matching of atom types as analog bits."""

from collections.abc import Sequence
from typing import Self

import attrs
from torch import Tensor

from kldm.processes.analog_bits import BITS, bits
from kldm.processes.euclidean_flow import EuclideanFlow
from kldm.processes.vocabulary import CodeBook, narrowed
from kldm.registry import process


def _codec(process: "BitsFlow") -> CodeBook:
    return CodeBook(bits, BITS, process.elements)


@process("bits_flow.v1")
@attrs.frozen(kw_only=True)
class BitsFlow(EuclideanFlow):
    """Atom types as 7 bits of Z - 1 in {-1, +1}, on straight lines from N(0, I) (FlowMM, Miller et al., 2024; Chen et
    al., 2023).

    The loss takes the network's answer as it is; every move clamps the x_0 that it implies to [-1, 1], within which
    the exact one lies. Decoding gives the element of the nearest code, whatever the numbers. Samples held to some
    elements decode to the nearest code of those alone, and every move takes the bits on which all of these agree as
    known.

    Args:
        parameterization: what the network predicts.
        anti_annealing: a of the step x <- x + (s - r) (1 + a t) v; 0 is Euler's method. See ``stride``.
        elements: atomic numbers that samples may hold; None: all.

    Raises:
        KldmError: an option out of range.
    """

    elements: tuple[int, ...] | None = None
    codec: CodeBook = attrs.field(init=False, repr=False, default=attrs.Factory(_codec, takes_self=True))

    def restricted(self, elements: Sequence[int]) -> Self:
        """The same process held to ``elements``, and to those that it is held to already."""
        return attrs.evolve(self, elements=narrowed(self.elements, elements))

    def _clean(self, start: Tensor) -> Tensor:
        return self.codec.known(start.clamp(-1, 1))
