"""Learning-rate schedules, by their formulas."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kldm.errors import KldmError
from kldm.interfaces import LearningRate
from kldm.registry import learning_rates
from kldm.training.learning_rates import Constant, CosineDecay, WarmupStableDecay

SHARES = st.just(0.0) | st.floats(1e-15, 1)


@pytest.mark.parametrize("kind", [Constant, CosineDecay, WarmupStableDecay])
def test_the_warm_up_is_a_straight_line_to_the_whole(kind: Callable[..., LearningRate]) -> None:
    warm, cold = kind(warmup_steps=4), kind()
    for step, share in enumerate([0.25, 0.5, 0.75, 1.0, 1.0, 1.0]):
        for progress in (0.0, 0.3, 0.9):
            assert warm.factor(step, progress) == pytest.approx(share * cold.factor(step, progress))


def test_a_constant_stays() -> None:
    assert {Constant().factor(step, step / 9) for step in range(10)} == {1.0}


def test_half_a_cosine_to_its_floor() -> None:
    found = [CosineDecay(floor=0.1).factor(10**6, progress) for progress in (0.0, 1 / 3, 0.5, 1.0)]
    assert found == pytest.approx([1.0, 0.1 + 0.9 * 0.75, 0.55, 0.1])


@pytest.mark.parametrize(
    ("shape", "quarter", "half"),
    [("linear", 0.75, 0.5), ("cosine", (1 + math.sqrt(0.5)) / 2, 0.5), ("sqrt", 0.5, 1 - math.sqrt(0.5))],
)
def test_stable_then_decay(shape: Any, quarter: float, half: float) -> None:
    schedule = WarmupStableDecay(decay=0.2, shape=shape, floor=0.5)
    found = [schedule.factor(7, progress) for progress in (0.0, 0.5, 0.8, 0.85, 0.9, 1.0)]
    assert found == pytest.approx([1, 1, 1, (1 + quarter) / 2, (1 + half) / 2, 0.5])


@given(SHARES, SHARES, SHARES, SHARES, st.sampled_from(["linear", "cosine", "sqrt"]))
def test_it_never_rises_after_the_warm_up(a: float, b: float, decay: float, floor: float, shape: Any) -> None:
    early, late = sorted((a, b))
    for schedule in (WarmupStableDecay(decay=decay, shape=shape, floor=floor), CosineDecay(floor=floor)):
        first, second = (schedule.factor(0, progress) for progress in (early, late))
        assert 1 + 1e-12 >= first >= second - 1e-12
        assert second >= floor - 1e-12


@given(SHARES)
def test_a_trunk_does_not_know_how_long_it_will_be(progress: float) -> None:
    assert WarmupStableDecay(warmup_steps=10, decay=0.0).factor(9, progress) == 1.0


def test_a_branch_decays_from_its_first_step_on() -> None:
    branch = WarmupStableDecay(decay=1.0, shape="linear")
    assert [branch.factor(0, progress) for progress in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Constant, {"warmup_steps": -1}),
        (CosineDecay, {"warmup_steps": -1}),
        (CosineDecay, {"floor": 1.1}),
        (WarmupStableDecay, {"decay": -0.1}),
        (WarmupStableDecay, {"floor": math.nan}),
        (WarmupStableDecay, {"shape": "exponential"}),
    ],
)
def test_impossible_options(kind: Callable[..., LearningRate], options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(KldmError, match=f"{name}: must be"):
        kind(**options)


def test_they_are_on_their_shelf() -> None:
    own = {learning_rates.get(name) for name in ("constant.v1", "cosine_decay.v1", "warmup_stable_decay.v1")}
    assert own == {Constant, CosineDecay, WarmupStableDecay}
