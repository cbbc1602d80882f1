"""Validators of options, for ``attrs.field``. Each raises ``KldmError`` at the option's name, which recipes complete.

For an option that may be None, wrap them in ``attrs.validators.optional``. Not-a-number is never accepted.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from math import inf
from types import SimpleNamespace
from typing import Any, Literal, cast, get_args

import attrs

from kldm.errors import KldmError, nearest

SMALLEST, LARGEST = 1e-15, 1e12
"""Bounds of the size of every number but 0: beyond them float32 loses it, or its square."""

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def above(bound: float) -> Validator:
    """A finite number above the bound."""
    return _satisfies(lambda value: bound < value < inf, f"above {bound:,}")


def at_least(bound: float) -> Validator:
    """A finite number, the bound or above."""
    return _satisfies(lambda value: bound <= value < inf, f"at least {bound:,}")


def finite() -> Validator:
    """A number that is neither infinite nor not-a-number."""
    return _satisfies(lambda value: -inf < value < inf, "a finite number")


def within(low: float, high: float, *, ends: Literal["both", "low", "high", "neither"] = "both") -> Validator:
    """A number from ``low`` to ``high``; ``ends`` says which of the two are allowed themselves."""
    match ends:
        case "both":
            return _satisfies(lambda value: low <= value <= high, f"from {low:,} to {high:,}")
        case "low":
            return _satisfies(lambda value: low <= value < high, f"at least {low:,} and below {high:,}")
        case "high":
            return _satisfies(lambda value: low < value <= high, f"above {low:,} and at most {high:,}")
        case "neither":
            return _satisfies(lambda value: low < value < high, f"between {low:,} and {high:,}")


def one_of(*names: str) -> Validator:
    """One of the names; without names, one of the values of the option's ``Literal`` type."""

    def check(_instance: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        known = names or get_args(attribute.type)
        if value not in known:
            remedy = nearest(str(value), [str(name) for name in known])
            problem = f"must be one of {', '.join(map(str, known))}, got {value!r}"
            raise KldmError(problem, place=attribute.name, remedy=remedy)

    return check


def worker_count() -> Validator:
    """A number of processes, or -1 for as many as there are CPU cores."""
    return _satisfies(lambda value: 1 <= value <= 1024 or value == -1, "a number of processes, or -1 for all cores")


def duration() -> Validator:
    """A number of seconds that a thread can wait for."""
    return within(0, threading.TIMEOUT_MAX, ends="high")


def each(validator: Validator) -> Validator:
    """Apply a validator to every value of a mapping or sequence; the place of an error names its key."""

    def check(instance: Any, attribute: "attrs.Attribute[Any]", values: Any) -> None:
        if isinstance(values, str) or not isinstance(values, Mapping | Sequence):
            raise KldmError(f"must be a mapping or a sequence, got {values!r}", place=attribute.name)
        for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
            try:
                validator(instance, attribute, value)
            except KldmError as error:
                raise KldmError(error.problem, place=f"{attribute.name}.{key}", remedy=error.remedy) from None

    return check


def validate(name: str, value: Any, validator: Validator) -> None:
    """Validate an argument of a function, or of a class that attrs does not make."""
    validator(None, cast("attrs.Attribute[Any]", SimpleNamespace(name=name)), value)


def _satisfies(condition: Callable[[Any], bool], requirement: str) -> Validator:
    def check(_instance: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        try:
            accepted, text = condition(value), f"{value:,}"
        except (TypeError, ValueError, OverflowError):  # what is not a number has neither an order nor thousands
            accepted, text = False, repr(value)
        if not accepted:
            raise KldmError(f"must be {requirement}, got {text}", place=attribute.name)
        if value and not SMALLEST <= abs(value) <= LARGEST:
            got = f"{value:g}" if abs(value) < 1e300 else "a larger one"
            problem = f"must be 0 or from {SMALLEST:g} to {LARGEST:g} in size, got {got}"
            raise KldmError(problem, place=attribute.name)

    return check
