"""Codecs of the species: every element has a code of real numbers."""

from collections.abc import Callable, Sequence
from typing import Self

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals
from kldm.interfaces import Channel
from kldm.processes.vocabulary import VOCABULARY, check_elements, narrowed
from kldm.runtime.tables import table

_LARGEST = 1e300  # numbers are clamped to it, so that no sum over a row overflows
_BITS = 7

Code = Callable[[Tensor], Tensor]
"""int64 [M], Z - 1 in 0..99, to the code of each [M, C]; all codes have the same Euclidean length."""


@attrs.frozen
class CodeBook:
    """The codec of a species process: every element has a code, and numbers decode to the nearest one.

    Samples restricted to some elements decode to the nearest of their codes, and every move takes the numbers on which
    all of these codes agree as known.

    Attributes:
        code: the code of each element.
        width: C, numbers of a code.
        bounds: the range of the numbers of all codes, to which estimates are clamped; None: they are not.
        elements: atomic numbers that decoding may give; None: all.

    Raises:
        KldmError: ``elements`` is empty or has a number outside 1..100.
    """

    code: Code = attrs.field(repr=lambda code: code.__name__.strip("_"))
    width: int
    bounds: tuple[float, float] | None = None
    elements: tuple[int, ...] | None = None

    def __attrs_post_init__(self) -> None:
        if self.elements is not None:
            check_elements(self.elements)

    @property
    def channel(self) -> Channel:
        return Channel("species", self.width, "atom", "real")

    def encode(self, crystals: Crystals) -> Tensor:
        return self.code(crystals.species - 1).to(crystals.fractional.dtype)

    def decode(self, values: Tensor, into: Crystals) -> Crystals:
        """Nearest code in Euclidean distance; of equally near ones, the smallest atomic number. NaN counts as 0."""
        finite = torch.nan_to_num(values).double().clamp(-_LARGEST, _LARGEST)
        allowed, codes = self._allowed(finite)
        # Codes are equally long, so the nearest one has the largest product with the values.
        return attrs.evolve(into, species=allowed[(finite @ codes.T).argmax(-1)])

    def clean(self, values: Tensor) -> Tensor:
        """Estimates of codes [N, C], clamped, and with the common number put in where all allowed codes agree."""
        if self.bounds is not None:
            values = values.clamp(*self.bounds)
        if self.elements is None:
            return values
        _, codes = self._allowed(values)
        return torch.where((codes == codes[0]).all(0), codes[0], values)

    def restricted(self, elements: Sequence[int]) -> Self:
        """The same codec restricted to ``elements``, beside any earlier restriction."""
        return attrs.evolve(self, elements=narrowed(self.elements, elements))

    def _allowed(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The atomic numbers [E] that samples may contain, and their codes [E, C]."""
        elements = self.elements or tuple(range(1, VOCABULARY + 1))
        return _numbers(elements, like.device), _codes(self.code, elements, like.device, like.dtype)


@table
def _numbers(elements: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(sorted(set(elements)), device=device)


@table
def _codes(code: Code, elements: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return code(_numbers(elements, device) - 1).to(dtype)


def _one_hot(index: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(index, VOCABULARY)


def _bits(index: Tensor) -> Tensor:
    places = torch.arange(_BITS - 1, -1, -1, device=index.device)
    return 2 * ((index.unsqueeze(-1) >> places) & 1) - 1


ONE_HOT = CodeBook(_one_hot, VOCABULARY)
"""1 in column Z - 1 of 100, and 0 elsewhere."""

ANALOG_BITS = CodeBook(_bits, _BITS, bounds=(-1.0, 1.0))
"""The seven binary digits of Z - 1, most significant first, as -1 and +1 (Chen et al., 2023). 28 of the 128 patterns of
signs belong to no element; they too decode to the element of the nearest code."""
