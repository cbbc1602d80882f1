from itertools import product

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, DiffusionProcess, Restricts, Step
from kldm.processes import Linear, VPEuclidean, analog_bits
from kldm.recipe.building import build
from tests.oracles import random_crystals

EVERY = list(range(1, 101))


def of(species: list[int], dtype: torch.dtype = torch.float64) -> Crystals:
    """One-atom crystals of these elements."""
    return attrs.evolve(random_crystals((1,) * len(species), 0, dtype), species=torch.tensor(species))


def times(value: float, crystals: Crystals) -> Tensor:
    return torch.full((len(crystals),), value, dtype=crystals.fractional.dtype)


def step(s: float, r: float, crystals: Crystals) -> Step:
    rng = torch.Generator().manual_seed(0)
    return Step(times(s, crystals), times(r, crystals), times(s, crystals), crystals.layout, rng)


def patterns(dtype: torch.dtype = torch.float64) -> Tensor:
    """All 2^7 patterns of signs, the most significant bit first, in the order of the numbers they stand for."""
    return torch.tensor(list(product([-1, 1], repeat=7)), dtype=dtype)


def decoded(values: Tensor, elements: tuple[int, ...] | None = None) -> list[int]:
    into = Crystals(
        torch.zeros(len(values), 3), torch.ones(1, 6), torch.ones(len(values)).long(), Layout.of((len(values),))
    )
    species = analog_bits(elements=elements).decode({"species": values}, into).species
    assert species.dtype == torch.int64
    return [int(number) for number in species]


def test_reads_and_predicts_seven_real_numbers_per_atom() -> None:
    channel = Channel("species", 7, "atom", "real")
    assert analog_bits().reads == analog_bits().predicts == (channel,)
    assert isinstance(analog_bits(), Restricts)


def test_codes_are_the_binary_digits_of_the_number_less_one() -> None:
    codes = analog_bits().codec.encode(of(EVERY))
    assert codes.dtype == torch.float64
    assert torch.equal(codes, patterns()[:100])
    assert codes[[0, 5]].tolist() == [[-1] * 7, [-1, -1, -1, -1, 1, -1, 1]]
    assert decoded(codes) == EVERY


def test_every_pattern_of_signs_decodes_to_the_nearest_element() -> None:
    found = decoded(patterns())
    assert found[:100] == EVERY
    for pattern, number in zip(patterns()[100:], found[100:], strict=True):
        changed = (patterns()[:100] != pattern).sum(-1)
        assert changed[number - 1] == changed.min() == 1
        assert number == int(changed.argmin()) + 1  # the lightest of equally near ones


def test_noise_has_the_mean_and_spread_of_the_schedule() -> None:
    crystals = of([6] * 20_000)
    s = times(0.4, crystals)
    noised = analog_bits().noise(crystals, s, torch.Generator().manual_seed(0))
    x, alpha, sigma = noised.latent["species"], float(Linear().alpha(s)[0]), float(Linear().sigma(s)[0])
    torch.testing.assert_close(x.mean(0), alpha * patterns()[5], rtol=0.0, atol=5 * sigma / 20_000**0.5)
    torch.testing.assert_close(x.std(0), torch.full((7,), sigma, dtype=torch.float64), rtol=0.03, atol=0.0)


def test_the_loss_compares_the_answer_as_it_is_with_the_clean_bits() -> None:
    crystals = random_crystals((2, 5), 1)
    process, s = analog_bits(), times(0.3, crystals)
    noised = process.noise(crystals, s, torch.Generator().manual_seed(0))
    clean = patterns()[crystals.species - 1]
    assert process.loss({"species": clean}, noised, s, crystals.layout) == 0
    assert process.loss({"species": 3 * clean}, noised, s, crystals.layout) == 4  # not clamped


def moved(process: VPEuclidean, latent: Tensor, output: Tensor, crystals: Crystals) -> dict[str, Tensor]:
    """Where every move leads to, from the same noise."""
    arguments = {"species": latent}, {"species": output}
    now = (0.6, 0.3, crystals)
    ends = {
        "denoise": process.denoise(*arguments, step(*now)),
        "flow": process.flow(*arguments, step(*now)),
        "predict": process.moves["predict"](*arguments, step(*now)),
        "exponential": process.exponential(*arguments, step(*now)),
        "correct": process.correct(*arguments, step(*now)),
    }
    return {name: end["species"] for name, end in ends.items()}


def test_every_move_takes_answers_beyond_the_bits_as_the_bits() -> None:
    crystals = random_crystals((3, 2), 0)
    process = analog_bits()
    latent = process.prior(crystals, torch.Generator().manual_seed(0))["species"]
    output = 3 * torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    beyond, within = (moved(process, latent, answer, crystals) for answer in (output, output.clamp(-1, 1)))
    half = moved(process, latent, output / 2, crystals)
    for name in beyond:
        assert torch.equal(beyond[name], within[name]), name
        assert not torch.equal(beyond[name], half[name]), name


def test_bits_that_all_allowed_elements_share_are_known() -> None:
    """Z - 1 is 0000010 for Li, 0000111 for O, 0000011 for Be: five bits of all three agree, the last two do not."""
    crystals = random_crystals((3, 2), 0)
    free = analog_bits()
    latent = free.prior(crystals, torch.Generator().manual_seed(0))["species"]
    output = torch.rand(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    for elements, shared in (((3, 8, 4), [-1, -1, -1, -1, None, 1, None]), ((26,), [-1, -1, 1, 1, -1, -1, 1])):
        put = output.clone()
        for column, bit in enumerate(shared):
            if bit is not None:
                put[:, column] = bit
        here, there = (
            moved(free.restricted(elements), latent, output, crystals),
            moved(free, latent, put, crystals),
        )
        for name in here:
            assert torch.equal(here[name], there[name]), name


ROWS = st.lists(
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=7, max_size=7), min_size=1, max_size=8
)
ELEMENTS = st.none() | st.sets(st.integers(1, 100), min_size=1).map(lambda numbers: tuple(sorted(numbers)))


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, elements=ELEMENTS)
def test_any_numbers_decode_to_an_allowed_element(rows: list[list[float]], elements: tuple[int, ...] | None) -> None:
    values = torch.tensor(rows, dtype=torch.float32)
    found = decoded(values, elements)
    assert set(found) <= set(elements or EVERY)
    assert decoded(values, elements) == found


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.lists(st.floats(-4, 4), min_size=7, max_size=7), min_size=1, max_size=8), elements=ELEMENTS)
def test_decoding_finds_the_nearest_code_in_euclidean_distance(
    rows: list[list[float]], elements: tuple[int, ...] | None
) -> None:
    values = torch.tensor(rows, dtype=torch.float64)
    allowed = torch.tensor(elements or EVERY)
    distance = (values.unsqueeze(1) - patterns()[allowed - 1]).norm(dim=-1)
    for row, number in zip(distance, decoded(values, elements), strict=True):
        assert float(row[allowed == number]) <= float(row.min()) + 1e-12


def test_numbers_beyond_any_sum_decode_by_their_signs() -> None:
    for dtype in (torch.float32, torch.float64):
        assert decoded(patterns(dtype)[:100] * torch.finfo(dtype).max) == EVERY
    codes = patterns(torch.float32)[:100]
    assert decoded(codes * float("inf")) == EVERY
    assert decoded(codes * torch.finfo(torch.float32).tiny) == EVERY
    assert decoded(torch.full((1, 7), float("nan")), (8, 3)) == [3]


@pytest.mark.parametrize("elements", [(), (0,), (3, 101)])
def test_bad_elements_are_refused(elements: tuple[int, ...]) -> None:
    with pytest.raises(KldmError, match=r"^elements: must"):
        analog_bits(elements=elements)
    with pytest.raises(KldmError, match=r"^elements: must"):
        analog_bits().restricted(elements)


def test_restrictions_add_up() -> None:
    process = analog_bits(eta=0.5, elements=(26, 3, 8))
    assert process.restricted([8, 26, 79]) == analog_bits(eta=0.5, elements=(8, 26))
    with pytest.raises(KldmError, match="none of the elements asked for"):
        process.restricted([79])


def test_a_recipe_sets_its_options_and_neither_codec_nor_parameterization() -> None:
    section = {"@processes": "analog_bits.v1", "eta": 0.5, "elements": None}
    built, complete = build(section, DiffusionProcess)
    assert built == analog_bits(eta=0.5)
    assert complete == {**section, "schedule": {"@schedules": "linear.v1", "beta_min": 0.1, "beta_max": 20.0}}
    for key, value in (("parameterization", "eps"), ("codec", {"@codecs": "identity.v1"})):
        with pytest.raises(KldmError, match="unknown key"):
            build({**section, key: value}, DiffusionProcess)
