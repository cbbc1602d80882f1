"""Atom types as rows of real numbers: the codes of the vocabulary, of which samples may be held to some elements."""

from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor

from kldm.compiling import table
from kldm.crystals import Crystals
from kldm.errors import KldmError
from kldm.interfaces import Channel

VOCABULARY = 100
"""Atomic numbers 1 to 100."""

_LARGEST = 1e300  # of the numbers of a row: no sum of them overflows

Code = Callable[[Tensor], Tensor]
"""int64 [M], Z - 1 in 0..99, to the code of each [M, C]; all codes have the same Euclidean length."""


@attrs.frozen
class CodeBook:
    """The codec of a species process: every element has a code, and every row of numbers the element of the nearest.

    Attributes:
        code: the code of each element.
        width: C, numbers of a code.
        elements: atomic numbers that decoding may give; None: all.

    Raises:
        KldmError: ``elements`` is empty or holds a number outside 1..100.
    """

    code: Code
    width: int
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

    def known(self, values: Tensor) -> Tensor:
        """The values, those numbers replaced on which the codes of all allowed elements agree."""
        if self.elements is None:
            return values
        _, codes = self._allowed(values)
        return torch.where((codes == codes[0]).all(0), codes[0], values)

    def _allowed(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The atomic numbers [E] that samples may hold, and their codes [E, C]."""
        elements = self.elements or tuple(range(1, VOCABULARY + 1))
        return _numbers(elements, like.device), _codes(self.code, elements, like.device, like.dtype)


def check_elements(elements: Sequence[int]) -> None:
    """Raises ``KldmError`` unless there is an element and all are atomic numbers of the vocabulary."""
    if not elements:
        raise KldmError("wants at least one atomic number", place="elements", remedy="leave it out to allow all")
    for number in elements:
        if not 1 <= number <= VOCABULARY:
            raise KldmError(f"wants atomic numbers from 1 to {VOCABULARY}, not {number}", place="elements")


def narrowed(held: tuple[int, ...] | None, elements: Sequence[int]) -> tuple[int, ...]:
    """Those of ``elements`` that a process may already hold, in rising order: it is never widened.

    Args:
        held: the elements that the process is held to already; None: all.
        elements: atomic numbers.

    Raises:
        KldmError: ``elements`` is empty or holds a number outside 1..100, or none of them is in ``held``.
    """
    check_elements(elements)
    both = set(elements) if held is None else set(elements) & set(held)
    if not both:
        raise KldmError("none of the elements asked for is among those that the process allows", place="elements")
    return tuple(sorted(both))


@table
def _numbers(elements: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(sorted(set(elements)), device=device)


@table
def _codes(code: Code, elements: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return code(_numbers(elements, device) - 1).to(dtype)
