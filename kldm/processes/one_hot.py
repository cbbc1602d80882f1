"""Atom types as one-hot vectors under Euclidean diffusion."""

from collections.abc import Sequence
from typing import Self

import attrs
import torch
from torch import Tensor

from kldm.processes.vocabulary import VOCABULARY, CodeBook, narrowed
from kldm.processes.vp_euclidean import VPEuclidean
from kldm.registry import process


def one_hot(index: Tensor) -> Tensor:
    """int64 [M], Z - 1, to [M, 100] with 1 in column Z - 1 and 0 elsewhere."""
    return torch.nn.functional.one_hot(index, VOCABULARY)


def _codec(process: "OneHot") -> CodeBook:
    return CodeBook(one_hot, VOCABULARY, process.elements)


@process("one_hot.v1")
@attrs.frozen(kw_only=True)
class OneHot(VPEuclidean):
    """Atom types as one-hot vectors under the VP-SDE, decoded by argmax (section 3.3, variant C; Jiao et al., 2023).

    Samples held to some elements take the argmax over those alone, and every move takes 0 for x_0 in the columns of
    the others (and 1 in the column of the only one).

    Args:
        schedule: alpha, sigma and beta.
        parameterization: what the network predicts.
        eta: noise of ``exponential``; 1 draws from the posterior (ancestral sampling), 0 is ``flow``.
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
        return self.codec.known(start)
