"""The vocabulary of atom types, and how samples are held to some of it."""

from collections.abc import Sequence

from kldm.errors import KldmError

VOCABULARY = 100
"""Atomic numbers 1 to 100."""


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
