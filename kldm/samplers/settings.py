"""Validators that the options of several samplers share."""

from collections.abc import Callable
from math import inf
from typing import Any

import attrs

from kldm.errors import KldmError

MOST_STEPS = 10**6
"""The times of all steps are made beforehand; nobody has wanted more than a thousand of them."""


def positive(_instance: Any, attribute: "attrs.Attribute[Any]", value: float) -> None:
    """An option that must be above 0, and finite."""
    if not 0 < value < inf:
        raise KldmError(f"must be above 0, got {value}", place=attribute.name)


def number_of_steps(_instance: Any, attribute: "attrs.Attribute[Any]", value: int) -> None:
    """An option that must be from 1 to ``MOST_STEPS``."""
    if not 1 <= value <= MOST_STEPS:
        raise KldmError(f"must be from 1 to {MOST_STEPS:,}, got {value:,}", place=attribute.name)


def below_one(_instance: Any, attribute: "attrs.Attribute[Any]", value: float) -> None:
    """A unit time at which a reverse process may end."""
    if not 0 <= value < 1:
        raise KldmError(f"must be at least 0 and below 1, got {value}", place=attribute.name)


def one_of(*names: str) -> "Callable[[Any, attrs.Attribute[Any], str], None]":
    """An option with a name; recipes check it by its annotation, Python code by this."""

    def check(_instance: Any, attribute: "attrs.Attribute[Any]", value: str) -> None:
        if value not in names:
            raise KldmError(f"must be one of {', '.join(names)}, got {value!r}", place=attribute.name)

    return check
