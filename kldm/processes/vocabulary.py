"""The vocabulary of atom types, and how samples are restricted to a part of it."""

from collections.abc import Sequence

from kldm.errors import KldmError

VOCABULARY = 100
"""Atomic numbers 1 to 100."""


def check_elements(elements: Sequence[int]) -> None:
    """Raises ``KldmError`` unless there is an element and all are atomic numbers of the vocabulary."""
    if not elements:
        raise KldmError("must name at least one atomic number", place="elements", remedy="leave it out to allow all")
    for number in elements:
        if not 1 <= number <= VOCABULARY:
            raise KldmError(f"must be atomic numbers from 1 to {VOCABULARY}, got {number}", place="elements")


def narrowed(allowed: tuple[int, ...] | None, elements: Sequence[int]) -> tuple[int, ...]:
    """Those of ``elements`` that a process already allows, in rising order: a restriction is never widened.

    Args:
        allowed: the elements that the process allows already; None: all.
        elements: atomic numbers.

    Raises:
        KldmError: ``elements`` is empty or has a number outside 1..100, or none of them is allowed.
    """
    check_elements(elements)
    common = set(elements) if allowed is None else set(elements) & set(allowed)
    if not common:
        raise KldmError("none of the elements asked for is among those that the process allows", place="elements")
    return tuple(sorted(common))
