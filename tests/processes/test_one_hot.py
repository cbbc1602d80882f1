from typing import Literal

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kldm.crystals import Crystals
from kldm.errors import KldmError
from kldm.interfaces import Channel, DiffusionProcess, Restricts, Step
from kldm.processes import Linear, one_hot
from kldm.recipe.building import build
from tests.oracles import random_crystals

Parameterization = Literal["x0", "eps"]
EVERY = list(range(1, 101))


def of(species: list[int], dtype: torch.dtype = torch.float64) -> Crystals:
    """One-atom crystals of these elements."""
    return attrs.evolve(random_crystals((1,) * len(species), 0, dtype), species=torch.tensor(species))


def times(value: float, crystals: Crystals) -> Tensor:
    return torch.full((len(crystals),), value, dtype=crystals.fractional.dtype)


def step(s: float, r: float, crystals: Crystals, seed: int = 0) -> Step:
    return Step(
        times(s, crystals), times(r, crystals), times(s, crystals), crystals.layout, torch.Generator().manual_seed(seed)
    )


def test_reads_and_predicts_a_hundred_real_numbers_per_atom() -> None:
    channel = Channel("species", 100, "atom", "real")
    assert one_hot().reads == one_hot().predicts == (channel,)
    assert isinstance(one_hot(), Restricts)


def test_every_element_is_its_own_column() -> None:
    process, crystals = one_hot(), of(EVERY)
    codes = process.codec.encode(crystals)
    assert torch.equal(codes, torch.eye(100, dtype=torch.float64))
    assert process.decode({"species": codes}, of([50] * 100)).species.tolist() == EVERY


def test_noise_has_the_mean_and_spread_of_the_schedule() -> None:
    crystals = of([8] * 20_000)
    s = times(0.4, crystals)
    noised = one_hot().noise(crystals, s, torch.Generator().manual_seed(0))
    x, alpha, sigma = noised.latent["species"], float(Linear().alpha(s)[0]), float(Linear().sigma(s)[0])
    expected = torch.zeros(100, dtype=torch.float64)
    expected[7] = alpha
    torch.testing.assert_close(x.mean(0), expected, rtol=0.0, atol=5 * sigma / 20_000**0.5)
    torch.testing.assert_close(x.std(0), torch.full((100,), sigma, dtype=torch.float64), rtol=0.03, atol=0.0)


@pytest.mark.parametrize("parameterization", ["x0", "eps"])
def test_loss_is_nought_at_the_clean_vector_or_the_noise(parameterization: Parameterization) -> None:
    crystals = random_crystals((2, 5), 1)
    process, s = one_hot(parameterization=parameterization), times(0.3, crystals)
    noised = process.noise(crystals, s, torch.Generator().manual_seed(0))
    clean = torch.nn.functional.one_hot(crystals.species - 1, 100).double()
    alpha, sigma = Linear().alpha(s)[0], Linear().sigma(s)[0]
    exact = clean if parameterization == "x0" else (noised.latent["species"] - alpha * clean) / sigma
    assert process.loss({"species": exact}, noised, s, crystals.layout) < 1e-20
    off = process.loss({"species": exact + 0.5}, noised, s, crystals.layout)
    assert off.item() == pytest.approx(0.25)


@pytest.mark.parametrize("elements", [None, (3, 8, 25)])
def test_both_parameterizations_make_the_same_step(elements: tuple[int, ...] | None) -> None:
    crystals = of([3, 8, 79])
    moves = ("denoise", "flow", "predict", "exponential", "correct")
    for s, r in ((1.0, 0.9), (0.3, 0.0)):
        ends: dict[str, list[Tensor]] = {name: [] for name in moves}
        for parameterization in ("x0", "eps"):
            process = one_hot(parameterization=parameterization, elements=elements)
            noised = process.noise(crystals, times(s, crystals), torch.Generator().manual_seed(1))
            arguments = noised.latent, noised.target
            ends["denoise"].append(process.denoise(*arguments, step(s, r, crystals))["species"])
            ends["flow"].append(process.flow(*arguments, step(s, r, crystals))["species"])
            ends["predict"].append(process.moves["predict"](*arguments, step(s, r, crystals))["species"])
            ends["exponential"].append(process.exponential(*arguments, step(s, r, crystals))["species"])
            ends["correct"].append(process.correct(*arguments, step(s, r, crystals))["species"])
        for x0, eps in ends.values():
            torch.testing.assert_close(x0, eps, rtol=1e-9, atol=1e-9)


def test_forbidden_columns_are_nought_in_the_estimate_and_allowed_ones_untouched() -> None:
    """At r = 0 the flow is the estimate of x_0 itself."""
    crystals = of([3, 8, 79])
    for parameterization in ("x0", "eps"):
        free = one_hot(parameterization=parameterization)
        restricted = free.restricted((3, 8, 25))
        latent = free.prior(crystals, torch.Generator().manual_seed(0))
        output = {"species": torch.randn(3, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}
        there, here = (p.flow(latent, output, step(0.9, 0.0, crystals))["species"] for p in (free, restricted))
        allowed = torch.zeros(100, dtype=torch.bool)
        allowed[[2, 7, 24]] = True
        assert torch.equal(here[:, allowed], there[:, allowed])
        assert (here[:, ~allowed] == 0).all()
        assert (there[:, ~allowed] != 0).all()


def test_moves_stay_in_keeping_with_the_estimate_of_a_restricted_process() -> None:
    """x = alpha x_0 + sigma eps: the flow of an estimate that a restriction changed ends where that line does."""
    crystals = of([3, 79])
    for parameterization in ("x0", "eps"):
        process = one_hot(parameterization=parameterization, elements=(3, 8))
        latent = process.prior(crystals, torch.Generator().manual_seed(0))
        output = {"species": torch.randn(2, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}
        start = process.flow(latent, output, step(0.5, 0.0, crystals))["species"]
        s, r = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
        noise = (latent["species"] - Linear().alpha(s) * start) / Linear().sigma(s)
        expected = Linear().alpha(r) * start + Linear().sigma(r) * noise
        found = process.flow(latent, output, step(0.5, 0.2, crystals))["species"]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_allowing_every_element_changes_no_digit() -> None:
    crystals = random_crystals((3, 2), 0, torch.float32)
    for parameterization in ("x0", "eps"):
        free = one_hot(parameterization=parameterization)
        noised = free.noise(crystals, times(0.01, crystals), torch.Generator().manual_seed(0))
        ends = [
            process.denoise(noised.latent, noised.target, step(0.01, 0.005, crystals))["species"]
            for process in (free, free.restricted(EVERY))
        ]
        assert torch.equal(ends[0], ends[1])


def test_the_networks_eps_is_used_to_the_last_digit() -> None:
    """Recomputed from x_0, it would lose the digits that a division by a small sigma costs."""
    crystals, process = random_crystals((5,), 0, torch.float32), one_hot(parameterization="eps")
    s, r = times(0.01, crystals), times(0.005, crystals)
    noised = process.noise(crystals, s, torch.Generator().manual_seed(0))
    x, eps = noised.latent["species"], noised.target["species"]
    fresh = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    spread = Linear().beta(s) * (s - r)
    expected = x + (x / 2 - eps / Linear().sigma(s)) * spread + spread.sqrt() * fresh
    assert torch.equal(process.denoise(noised.latent, noised.target, step(0.01, 0.005, crystals))["species"], expected)


def test_a_single_allowed_element_is_known_exactly() -> None:
    crystals = of([8, 79])
    process = one_hot(elements=(26,))
    latent = process.prior(crystals, torch.Generator().manual_seed(0))
    output = {"species": torch.randn(2, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}
    end = process.flow(latent, output, step(1.0, 0.0, crystals))
    assert torch.equal(end["species"], process.codec.encode(of([26, 26])))
    assert process.decode(end, crystals).species.tolist() == [26, 26]


ELEMENTS = st.none() | st.sets(st.integers(1, 100), min_size=1).map(lambda numbers: tuple(sorted(numbers)))


@settings(max_examples=40, deadline=None)
@given(row=st.lists(st.floats(width=32), min_size=100, max_size=100), elements=ELEMENTS)
def test_any_numbers_decode_to_the_largest_allowed_column(row: list[float], elements: tuple[int, ...] | None) -> None:
    values = torch.tensor([row], dtype=torch.float32)
    decoded = one_hot(elements=elements).decode({"species": values}, of([50], torch.float32)).species
    assert decoded.dtype == torch.int64
    allowed = torch.tensor(elements or EVERY)
    finite = torch.nan_to_num(values[0])[allowed - 1]
    assert decoded.item() == allowed[finite == finite.max()][0]  # the lightest of equals


def test_neither_nan_nor_infinity_nor_a_huge_forbidden_column_hides_the_largest() -> None:
    values = torch.zeros(4, 100)
    values[0] = float("nan")
    values[1] = float("-inf")
    values[1, 7] = 0
    values[2] = 1e-6
    values[2, 7], values[2, 50] = 2e-6, 3e38
    values[3] = -3e38
    values[3, 7] = -2e38
    species = one_hot(elements=(3, 8, 25)).decode({"species": values}, of([50] * 4)).species
    assert species.tolist() == [3, 8, 8, 8]


def test_restrictions_add_up() -> None:
    process = one_hot(elements=(26, 3, 8))
    assert process.restricted([8, 26, 8, 79]).codec == one_hot(elements=(8, 26)).codec
    assert process.restricted([8, 26]) == one_hot(elements=(8, 26))
    assert process.restricted((3,)).parameterization == process.parameterization
    with pytest.raises(KldmError, match="none of the elements asked for"):
        process.restricted([79])


@pytest.mark.parametrize("elements", [(), (0,), (3, 101), (-1,)])
def test_bad_elements_are_refused(elements: tuple[int, ...]) -> None:
    with pytest.raises(KldmError, match=r"^elements: must"):
        one_hot(elements=elements)
    with pytest.raises(KldmError, match=r"^elements: must"):
        one_hot().restricted(elements)


def test_a_recipe_sets_its_options_and_no_codec() -> None:
    section = {"@processes": "one_hot.v1", "parameterization": "eps", "eta": 0.5, "elements": [3, 8]}
    built, complete = build(section, DiffusionProcess)
    assert built == one_hot(parameterization="eps", eta=0.5, elements=(3, 8))
    assert complete == {**section, "schedule": {"@schedules": "linear.v1", "beta_min": 0.1, "beta_max": 20.0}}
    again, _ = build(complete, DiffusionProcess)
    assert again == built
    with pytest.raises(KldmError, match="unknown key"):
        build({**section, "codec": {"@codecs": "identity.v1"}}, DiffusionProcess)
    with pytest.raises(KldmError, match=r"eta: must be from 0 to 1, got -0.1"):
        one_hot(eta=-0.1)
