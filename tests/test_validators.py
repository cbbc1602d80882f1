"""Validators of options: what they accept, what they refuse, and how they say it."""

from collections.abc import Mapping
from math import inf, nan
from threading import TIMEOUT_MAX
from typing import Any, Literal

import attrs
import pytest

from kldm.errors import KldmError
from kldm.validators import Validator, above, at_least, duration, each, finite, one_of, within, worker_count


def verdict(validator: Validator, value: Any) -> str:
    """Why an option with this validator refuses the value; empty where it takes it."""

    @attrs.frozen
    class Options:
        option: Any = attrs.field(validator=validator)

    try:
        Options(value)
    except KldmError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("validator", "good", "bad", "sentence"),
    [
        (above(0), [1e-15, 1, 1e12], [0, -1, inf, nan], "option: must be above 0, got "),
        (at_least(1000), [1000, 1001.5], [999, -inf, inf, nan], "option: must be at least 1,000, got "),
        (finite(), [-1e12, 0, 2], [inf, -inf, nan], "option: must be a finite number, got "),
        (
            worker_count(),
            [-1, 1, 64],
            [0, -2, 1025],
            "option: must be a number of processes, or -1 for all cores, got ",
        ),
        (duration(), [1e-3, 3600], [0, -1, inf, nan], f"option: must be above 0 and at most {TIMEOUT_MAX:,}, got "),
        (within(0, 1), [0, 0.5, 1], [-0.001, 1.001, nan], "option: must be from 0 to 1, got "),
        (within(0, 1, ends="low"), [0, 0.999], [1, -1, nan], "option: must be at least 0 and below 1, got "),
        (within(0, 1, ends="high"), [1e-9, 1], [0, 1.1, nan], "option: must be above 0 and at most 1, got "),
        (within(0, 1, ends="neither"), [0.5], [0, 1, nan], "option: must be between 0 and 1, got "),
    ],
)
def test_numbers(validator: Validator, good: list[float], bad: list[float], sentence: str) -> None:
    assert [verdict(validator, value) for value in good] == [""] * len(good)
    assert [verdict(validator, value) for value in bad] == [f"{sentence}{value:,}" for value in bad]


@pytest.mark.parametrize("value", ["x", None, (), {}])
@pytest.mark.parametrize("validator", [above(0), finite(), within(0, 1), worker_count()])
def test_what_is_no_number_is_refused_by_its_name(validator: Validator, value: Any) -> None:
    assert verdict(validator, value).startswith("option: must be ")
    assert verdict(validator, value).endswith(f", got {value!r}")


@pytest.mark.parametrize(("value", "got"), [(1e-300, "1e-300"), (-1e13, "-1e+13"), (10**400, "a larger one")])
def test_numbers_that_float32_loses_are_refused(value: float, got: str) -> None:
    assert verdict(finite(), value) == f"option: must be 0 or from 1e-15 to 1e+12 in size, got {got}"


def test_names() -> None:
    @attrs.frozen
    class Options:
        order: Literal["first", "second"] = attrs.field(default="first", validator=one_of())

    Options("second")
    with pytest.raises(KldmError, match=r"^order: must be one of first, second, got 'secnd'; did you mean 'second'\?$"):
        Options("secnd")  # type: ignore[arg-type]
    assert verdict(one_of("a", "b"), "c") == "option: must be one of a, b, got 'c'"


def test_each_value_is_named() -> None:
    values: Mapping[str, float] = {"coordinates": 1, "lattice": 101}
    assert verdict(each(within(0, 100)), values) == "option.lattice: must be from 0 to 100, got 101"
    assert verdict(each(above(0)), (1, 2, -3)) == "option.2: must be above 0, got -3"
    assert verdict(each(above(0)), (1, 2)) == verdict(each(above(0)), {}) == ""


@pytest.mark.parametrize("value", [3, "text"])
def test_each_wants_several_values(value: Any) -> None:
    assert verdict(each(above(0)), value) == f"option: must be a mapping or a sequence, got {value!r}"


def test_none_is_optional() -> None:
    assert verdict(attrs.validators.optional(above(0)), None) == ""
    assert verdict(attrs.validators.optional(above(0)), 0)
