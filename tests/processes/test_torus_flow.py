from itertools import pairwise

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kldm.crystals import Crystals
from kldm.errors import KldmError
from kldm.interfaces import Channel, DiffusionProcess, Step
from kldm.processes import TorusFlow
from kldm.processes.euler import stride
from kldm.recipe.building import build
from kldm.torus import unit, wrap
from tests.oracles import random_crystals

FREE = TorusFlow(zero_net_translation=False)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def times(value: float, crystals: Crystals) -> Tensor:
    return torch.full((len(crystals),), value, dtype=crystals.fractional.dtype)


def step(s: float, r: float, crystals: Crystals) -> Step:
    return Step(times(s, crystals), times(r, crystals), times(s, crystals), crystals.layout, seeded())


def place(process: TorusFlow, crystals: Crystals, s: float, seed: int = 0) -> Tensor:
    return process.noise(crystals, times(s, crystals), seeded(seed)).latent["fractional"]


def target(process: TorusFlow, crystals: Crystals, seed: int = 0) -> Tensor:
    return process.noise(crystals, times(0.5, crystals), seeded(seed)).target["flow"]


def test_reads_positions_and_predicts_a_tangent() -> None:
    assert TorusFlow().reads == (Channel("fractional", 3, "atom", "periodic"),)
    assert TorusFlow().predicts == (Channel("flow", 3, "atom", "tangent"),)


@pytest.mark.parametrize("noisy", [True, False], ids=["noise at s = 1", "prior"])
def test_noise_is_uniform_and_knows_nothing_of_the_data(noisy: bool) -> None:
    crystals = random_crystals((20,) * 1000, 0)
    crystals = attrs.evolve(crystals, fractional=crystals.fractional * 0 + 0.9)  # all in one place
    draw = place(TorusFlow(), crystals, 1.0) if noisy else TorusFlow().prior(crystals, seeded())["fractional"]
    count = torch.histc(draw.flatten(), bins=20, min=0, max=1)
    expected = draw.numel() / 20
    assert ((count - expected).square() / expected).sum() < 50  # chi-square with 19 degrees of freedom: 1 in 10,000


def test_the_path_runs_from_the_noise_to_the_data_by_the_shorter_way() -> None:
    """At every time the distance left is s times the whole one, which is at most half a turn."""
    crystals = random_crystals((3, 1, 6), 1)
    whole = target(FREE, crystals)
    assert ((whole >= -0.5) & (whole < 0.5)).all()
    assert whole.min() < -0.3
    assert whole.max() > 0.3
    for s in (1.0, 0.7, 0.2, 1e-9):
        left = wrap(crystals.fractional - place(FREE, crystals, s), 1.0)
        torch.testing.assert_close(left.abs(), s * whole.abs(), rtol=0.0, atol=1e-12)


def test_noise_and_displacement_are_those_of_the_same_draw() -> None:
    """u = wrap(f_0 - f_1), f_1 the uniform numbers of the generator."""
    crystals = random_crystals((4,), 1)
    draw = torch.rand(4, 3, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(place(FREE, crystals, 1.0), draw, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(unit(draw + target(FREE, crystals)), crystals.fractional, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("s", [0.95, 0.5, 0.1])
def test_the_target_is_the_velocity_along_the_path(s: float) -> None:
    crystals, h = random_crystals((5, 2), 2), 1e-4
    moved = wrap(place(FREE, crystals, s - h) - place(FREE, crystals, s + h), 1.0) / (2 * h)
    torch.testing.assert_close(moved, target(FREE, crystals), rtol=0.0, atol=1e-9)
    torch.testing.assert_close(crystals.layout.centred(moved), target(TorusFlow(), crystals), rtol=0.0, atol=1e-9)


def test_a_displacement_of_half_a_turn_goes_down() -> None:
    """f_0 - f_1 = 1/2 exactly: it belongs to the lower end of [-1/2, 1/2)."""
    crystals = random_crystals((1,) * 50, 0)
    draw = torch.rand(50, 3, generator=seeded(), dtype=torch.float64)
    crystals = attrs.evolve(crystals, fractional=unit(draw + 0.5))
    exact = (crystals.fractional - draw).abs() == 0.5  # where no digit was lost
    assert exact.sum() > 50
    assert (target(FREE, crystals)[exact] == -0.5).all()
    torch.testing.assert_close(place(FREE, crystals, 0.5)[exact], unit(draw - 0.25)[exact], rtol=0.0, atol=1e-12)


def test_the_target_has_no_net_translation_unless_asked_for() -> None:
    crystals = random_crystals((5, 1, 3), 3)
    centred = target(TorusFlow(), crystals)
    assert crystals.layout.mean(centred).abs().max() < 1e-12
    assert (centred[5] == 0).all()  # of one atom nothing is left
    assert crystals.layout.mean(target(FREE, crystals)).abs().max() > 0.05
    torch.testing.assert_close(centred, crystals.layout.centred(target(FREE, crystals)))


def test_what_is_learnt_does_not_depend_on_where_the_crystal_lies() -> None:
    """The law of the target, and of it and the relative places that a network sees, under a common translation."""
    crystals, shift = random_crystals((4,), 4), torch.tensor([0.3, -0.8, 0.05], dtype=torch.float64)
    many = random_crystals((4,) * 10_000, 0)
    here = attrs.evolve(many, fractional=crystals.fractional.repeat(10_000, 1))
    found = []
    for seed, crystals in ((1, here), (2, attrs.evolve(here, fractional=unit(here.fractional + shift)))):
        u = target(TorusFlow(), crystals, seed).reshape(-1, 4, 3)
        apart = place(TorusFlow(), crystals, 0.5, seed).reshape(-1, 4, 3)
        away = torch.sin(2 * torch.pi * (apart - apart.roll(1, 1)))
        found.append((u.square().mean((0, 1)), (u * away).mean(0)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0.05, atol=0.0)
    torch.testing.assert_close(found[0][0], torch.full((3,), 1 / 16, dtype=torch.float64), rtol=0.05, atol=0.0)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0.0, atol=0.012)
    assert found[0][1].abs().max() > 0.03


def test_the_loss_does_not_see_a_common_translation_of_the_answer() -> None:
    crystals, s = random_crystals((5, 2), 5), torch.tensor([0.4, 0.9], dtype=torch.float64)
    answer = torch.randn(7, 3, generator=seeded(1), dtype=torch.float64)
    moved = answer + crystals.layout.per_atom(torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 5.0]], dtype=torch.float64))
    for process, same in ((TorusFlow(), True), (FREE, False)):
        noised = process.noise(crystals, s, seeded())
        losses = [process.loss({"flow": prediction}, noised, s, crystals.layout) for prediction in (answer, moved)]
        assert bool((losses[0] - losses[1]).abs() < 1e-12) is same
    noised = FREE.noise(crystals, s, seeded())
    off = {"flow": noised.target["flow"] + 0.5}
    assert FREE.loss(off, noised, s, crystals.layout) == pytest.approx(0.25)


@settings(max_examples=60, deadline=None)
@given(start=st.floats(0.05, 1), share=st.floats(0, 0.95), annealing=st.sampled_from([0.0, 1.0, 10.0]))
def test_a_step_is_the_published_multiple_of_the_velocity(start: float, share: float, annealing: float) -> None:
    crystals = random_crystals((3, 2), 6)
    velocity = torch.randn(5, 3, generator=seeded(2), dtype=torch.float64)
    process = attrs.evolve(FREE, anti_annealing=annealing)
    now, end = crystals.fractional, start * share
    by = (start - end) * (1 + annealing * (1 - start))
    for name in ("flow", "denoise"):
        found = process.moves[name]({"fractional": now}, {"flow": velocity}, step(start, end, crystals))["fractional"]
        assert ((found >= 0) & (found < 1)).all()
        torch.testing.assert_close(wrap(found - now - by * velocity, 1.0), now * 0, rtol=0.0, atol=1e-9)


def test_a_step_leaves_the_translation_alone() -> None:
    crystals = random_crystals((3, 2), 6)
    velocity = torch.randn(5, 3, generator=seeded(2), dtype=torch.float64) / 10
    moved = TorusFlow().flow({"fractional": crystals.fractional}, {"flow": velocity}, step(0.9, 0.6, crystals))
    by = wrap(moved["fractional"] - crystals.fractional, 1.0)
    assert crystals.layout.mean(by).abs().max() < 1e-12
    torch.testing.assert_close(by, 0.3 * crystals.layout.centred(velocity))


def test_the_target_of_the_prior_leads_to_the_data_in_any_number_of_steps() -> None:
    crystals = random_crystals((4, 3), 7)
    velocity, latent = target(FREE, crystals), {"fractional": place(FREE, crystals, 1.0)}
    for s, r in ((1.0, 0.6), (0.6, 0.5), (0.5, 0.0)):
        latent = dict(FREE.flow(latent, {"flow": velocity}, step(s, r, crystals)))
    left = wrap(FREE.decode(latent, crystals).fractional - crystals.fractional, 1.0)
    assert left.abs().max() < 1e-12


def test_anti_annealing_lengthens_the_path_by_half_its_rate() -> None:
    crystals, count = random_crystals((1,), 0), 1000
    grid = [k / count for k in range(count, -1, -1)]
    for rate in (0.0, 4.0):
        whole = sum(float(stride(step(s, r, crystals), rate)) for s, r in pairwise(grid))
        assert whole == pytest.approx(1 + rate / 2, abs=0.01)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_options_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(KldmError, match="anti_annealing"):
        TorusFlow(anti_annealing=value)


def test_a_recipe_builds_it() -> None:
    tree = {"@processes": "torus_flow.v1", "anti_annealing": 10}
    built, complete = build(tree, DiffusionProcess)
    assert built == TorusFlow(anti_annealing=10.0)
    assert complete == {"@processes": "torus_flow.v1", "zero_net_translation": True, "anti_annealing": 10.0}
