from collections.abc import Callable
from functools import partial
from itertools import product
from math import inf, log, nan

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kldm.crystals import Layout
from kldm.errors import KldmError
from kldm.interfaces import Noised, Restricts, Sampler, Step
from kldm.model import JointModel
from kldm.networks import CSPVNet
from kldm.processes import LogTan, TrivializedTorus, VPEuclidean
from kldm.processes.absorbing import Absorbing
from kldm.processes.masking import EDGE, Masking, masked, rate
from kldm.samplers import EulerMaruyama, PredictorCorrector, ProbabilityFlow
from tests.oracles import random_crystals
from tests.small import NETWORK

MASK = 100
SCHEDULES: tuple[Masking, ...] = ("linear", "cosine", "poly2")
PAIR = torch.tensor([[0.30, 0.02, 0.08], [0.01, 0.25, 0.04], [0.05, 0.10, 0.15]], dtype=torch.float64)
"""A joint law of two atoms over three types, strongly correlated."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at(value: float, count: int = 1) -> Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def step(s: float, r: float, layout: Layout, seed: int = 0, now: float | None = None) -> Step:
    count = len(layout)
    return Step(at(s, count), at(r, count), at(s if now is None else now, count), layout, seeded(seed))


def posterior(tokens: Tensor) -> Tensor:
    """Exact logits [2 B, 100] for pairs of atoms that follow PAIR: log p(type | the other atom, if unmasked)."""
    first, second = tokens.view(-1, 2).unbind(-1)

    def given_other(joint: Tensor, other: Tensor) -> Tensor:
        table = torch.cat([joint / joint.sum(0), joint.sum(1, keepdim=True)], 1)
        return table[:, other.clamp(max=3)].T

    known = torch.stack([given_other(PAIR, second), given_other(PAIR.T, first)], 1).view(-1, 3)
    return torch.cat([known.log(), known.new_full((len(known), 97), -inf)], 1)


def pair_mean_loss(process: Absorbing, s: float, logits: Callable[[Tensor], Tensor]) -> float:
    """Expectation of ``loss`` at time s over the types of a pair and its masks, by enumeration."""
    total, m = 0.0, masked(process.schedule, at(s)).item()
    for types, hidden in product(product(range(3), repeat=2), product((False, True), repeat=2)):
        clean = torch.tensor(types)
        latent = torch.where(torch.tensor(hidden), MASK, clean)
        noised = Noised({"species": latent}, {"species": clean})
        loss = process.loss({"species": logits(latent)}, noised, at(s), Layout.of((2,))).item()
        total += PAIR[types].item() * m ** sum(hidden) * (1 - m) ** (2 - sum(hidden)) * loss
    return total


def entropy(law: Tensor) -> float:
    return -(law * law.log()).sum().item()


def quadrature(function: Callable[[float], float], points: int = 48) -> float:
    """Integral over s in [0, 1] by Gauss-Legendre, on [0, 0.05] and [0.05, 1]: poly2's weight peaks near s = 0.01."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    parts = ((0.0, 0.05), (0.05, 1.0))
    return sum(
        (b - a) / 2 * weight * function(a + (b - a) * (node + 1) / 2)
        for a, b in parts
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True)
    )


def chi_square(observed: Tensor, law: Tensor) -> float:
    expected = law * observed.sum()
    return ((observed - expected).square() / expected).sum().item()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_masking_grows_between_its_edges_at_its_rate(schedule: Masking) -> None:
    s = torch.linspace(0, 1, 201, dtype=torch.float64, requires_grad=True)
    m = masked(schedule, s)
    assert (m.diff() > 0).all()
    assert m[0].item() == pytest.approx(EDGE, abs=1e-15)
    assert m[-1].item() == pytest.approx(1 - EDGE, abs=1e-15)
    (slope,) = torch.autograd.grad(m.sum(), s)
    torch.testing.assert_close(rate(schedule, s.detach()), slope)


def test_masking_follows_the_named_shapes() -> None:
    half = {schedule: (masked(schedule, at(0.5)).item() - EDGE) / (1 - 2 * EDGE) for schedule in SCHEDULES}
    assert half == pytest.approx({"linear": 0.5, "cosine": 0.5**0.5, "poly2": 0.25}, abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weighted_loss_of_the_exact_posterior_integrates_to_the_entropy(schedule: Masking) -> None:
    """With f(alpha) the mean entropy of what is unmasked, f(1) - f(0) is the entropy of the data; the schedule covers
    f(1 - EDGE) - f(EDGE) of it."""

    def unmasked_entropy(alpha: float) -> float:
        return alpha**2 * entropy(PAIR) + alpha * (1 - alpha) * (entropy(PAIR.sum(0)) + entropy(PAIR.sum(1)))

    process = Absorbing(schedule=schedule)
    found = quadrature(lambda s: pair_mean_loss(process, s, posterior))
    assert found == pytest.approx((unmasked_entropy(1 - EDGE) - unmasked_entropy(EDGE)) / 2, rel=1e-9)
    assert found == pytest.approx(entropy(PAIR) / 2, rel=3e-4)


def test_weighted_loss_of_one_atom_is_its_entropy_less_the_edges() -> None:
    law = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    logits = {"species": torch.cat([law.log(), law.new_full((97,), -inf)]).unsqueeze(0)}
    process, layout = Absorbing(), Layout.of((1,))

    def mean_loss(s: float) -> float:
        hidden = torch.tensor([MASK])
        losses = [
            process.loss(logits, Noised({"species": hidden}, {"species": hidden * 0 + k}), at(s), layout)
            for k in range(3)
        ]
        return (torch.stack(losses) @ law * masked("linear", at(s))).item()

    assert quadrature(mean_loss, 8) == pytest.approx((1 - 2 * EDGE) * entropy(law), rel=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.05, 5), s=st.sampled_from([0.001, 0.3, 0.9]))
def test_no_other_prediction_has_a_lower_loss(seed: int, scale: float, s: float) -> None:
    table = scale * torch.randn(101, 101, 2, 100, generator=seeded(seed), dtype=torch.float64)[[0, 1, 2, MASK]]

    def other(tokens: Tensor) -> Tensor:
        first, second = tokens.tolist()
        return posterior(tokens) + table[min(first, 3), second]

    for loss_weight in ("weighted", "simple"):
        process = Absorbing(loss_weight=loss_weight)
        assert pair_mean_loss(process, s, other) > pair_mean_loss(process, s, posterior)


def test_loss_weighs_masked_atoms_by_their_crystals_time_and_counts_all_atoms() -> None:
    layout, s = Layout.of((3, 1)), torch.tensor([0.5, 0.1], dtype=torch.float64)
    clean = torch.tensor([4, 7, 9, 2])
    noised = Noised({"species": torch.tensor([MASK, 7, 9, MASK])}, {"species": clean})
    silent = {"species": torch.zeros(4, 100, dtype=torch.float64)}
    weight = [(1 - 2 * EDGE) / (EDGE + (1 - 2 * EDGE) * time) for time in (0.5, 0.1)]
    assert Absorbing().loss(silent, noised, s, layout).item() == pytest.approx(sum(weight) * log(100) / 4, rel=1e-12)
    plain = Absorbing(loss_weight="simple").loss(silent, noised, s, layout)
    assert plain.item() == pytest.approx(2 * log(100) / 4, rel=1e-12)
    unmasked = Noised({"species": clean}, {"species": clean})
    assert Absorbing().loss(silent, unmasked, s, layout).item() == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_loss_in_float32_is_that_in_float64_at_the_earliest_times(schedule: Masking) -> None:
    s, tokens = at(1e-3), torch.tensor([MASK])
    noised = Noised({"species": tokens}, {"species": tokens * 0})
    logits = torch.randn(1, 100, generator=seeded(), dtype=torch.float64)
    process, layout = Absorbing(schedule=schedule), Layout.of((1,))
    exact = process.loss({"species": logits}, noised, s, layout).item()
    found = process.loss({"species": logits.float()}, noised, s.float(), layout).item()
    assert found == pytest.approx(exact, rel=2e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_masks_the_share_of_each_crystals_time_and_nothing_else(schedule: Masking) -> None:
    crystals = random_crystals((4000, 4000, 60_000), 0)
    s = torch.tensor([0.8, 0.25, 0.0], dtype=torch.float64)
    noised = Absorbing(schedule=schedule).noise(crystals, s, seeded())
    hidden = noised.latent["species"] == MASK
    share = crystals.layout.mean(hidden.double())
    expected = masked(schedule, s)
    assert (share - expected)[:2].abs().max() < 0.03
    assert share[2] == 0
    assert torch.equal(noised.latent["species"][~hidden], crystals.species[~hidden] - 1)
    assert torch.equal(noised.target["species"], crystals.species - 1)


def test_denoising_unmasks_with_the_probability_of_the_step_and_leaves_the_unmasked() -> None:
    layout = Layout.of((20_000, 20_000, 20_000))
    tokens = torch.full((60_000,), MASK)
    tokens[::2] = torch.randint(100, (30_000,), generator=seeded())
    s, r = (torch.tensor(times, dtype=torch.float64) for times in ([0.8, 0.5, 0.4], [0.6, 0.1, 0.0]))
    times = Step(s, r, s, layout, seeded(1))
    logits = torch.full((60_000, 100), -inf)
    logits[:, 41] = 0
    after = Absorbing(schedule="poly2").denoise({"species": tokens}, {"species": logits}, times)["species"]
    assert torch.equal(after[::2], tokens[::2])
    assert set(after[1::2].tolist()) == {41, MASK}
    share = (after[1::2] == 41).double().view(3, -1).mean(1)
    expected = torch.tensor([1 - 0.36 / 0.64, 1 - 0.01 / 0.25, 1.0], dtype=torch.float64)
    assert (share - expected).abs().max() < 0.015
    assert share[2] == 1


def test_reverse_steps_with_the_exact_posterior_draw_the_data() -> None:
    """Atoms that unmask in one step are drawn as if independent; that happens in a share of pairs known beforehand."""
    count, steps = 20_000, 4
    process, crystals = Absorbing(), random_crystals((2,) * count, 0)
    latent = process.prior(crystals, seeded())
    assert (latent["species"] == MASK).all()
    rng = seeded(3)
    for k in range(steps, 0, -1):
        s, r = at(k / steps, count), at((k - 1) / steps, count)
        latent = process.denoise(latent, {"species": posterior(latent["species"])}, Step(s, r, s, crystals.layout, rng))
    m = masked("linear", torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    m[0] = 0
    together = (m.diff() / m[-1]).square().sum()
    law = (1 - together) * PAIR + together * PAIR.sum(1, keepdim=True) * PAIR.sum(0)
    pairs = latent["species"].view(-1, 2)
    observed = torch.bincount(pairs[:, 0] * 3 + pairs[:, 1], minlength=9).double()
    assert len(observed) == 9
    assert chi_square(observed, law.view(-1)) < 26.1  # 0.1 % quantile for 8 degrees of freedom


@pytest.mark.parametrize("s", [0.3, 0.7])
def test_correction_keeps_the_law_at_its_time(s: float) -> None:
    count, rng = 15_000, seeded(5)
    process, layout = Absorbing(remask=True), Layout.of((2,) * count)
    drawn = torch.multinomial(PAIR.view(-1), count, replacement=True, generator=rng)
    types = torch.stack([drawn // 3, drawn % 3], 1).view(-1)
    m = masked("linear", at(s)).item()
    tokens = torch.where(torch.rand(2 * count, generator=rng) < m, MASK, types)
    start = tokens
    for _ in range(6):
        logits, now = {"species": posterior(tokens)}, at(s, count)
        moved = process.correct({"species": tokens}, logits, Step(now, now / 2, now, layout, rng))
        assert layout.sum((moved["species"] != tokens).long()).max() == 1
        tokens = moved["species"]
    assert (tokens != start).view(-1, 2).double().mean(0).min() > 0.3
    table = torch.zeros(4, 4, dtype=torch.float64)
    table[:3, :3] = (1 - m) ** 2 * PAIR
    table[:3, 3], table[3, :3], table[3, 3] = m * (1 - m) * PAIR.sum(1), m * (1 - m) * PAIR.sum(0), m**2
    pairs = tokens.view(-1, 2).clamp(max=3)
    observed = torch.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16).double()
    assert chi_square(observed, table.view(-1)) < 37.7  # 0.1 % quantile for 15 degrees of freedom


def test_correction_is_off_unless_asked_for_and_leaves_no_mask_at_the_end() -> None:
    layout = Layout.of((2,) * 50)
    mixed = {"species": torch.tensor([MASK, 4] * 50)}
    logits = {"species": torch.zeros(100, 100)}
    untouched = Absorbing().correct(mixed, logits, step(0.5, 0.4, layout))
    assert torch.equal(untouched["species"], mixed["species"])
    singles = Layout.of((1,) * 60_000)
    clean, logits = {"species": torch.full((60_000,), 4)}, {"species": torch.zeros(60_000, 100)}
    ended = Absorbing(remask=True).correct(clean, logits, step(0.1, 0.0, singles, now=0.0))
    assert torch.equal(ended["species"], clean["species"])


SPECIAL = st.sampled_from([nan, inf, -inf, 3e38, -3e38, 0.0])


@settings(max_examples=40, deadline=None)
@given(
    logits=st.lists(SPECIAL | st.floats(width=32), min_size=100, max_size=100),
    seed=st.integers(0, 10**6),
    elements=st.none() | st.sets(st.integers(1, 100), min_size=1, max_size=5).map(lambda chosen: tuple(chosen)),
    schedule=st.sampled_from(SCHEDULES),
    double=st.booleans(),
)
def test_no_mask_and_no_forbidden_element_whatever_the_logits(
    logits: list[float], seed: int, elements: tuple[int, ...] | None, schedule: Masking, double: bool
) -> None:
    process = Absorbing(schedule=schedule, elements=elements, remask=True)
    crystals, rng = random_crystals((3, 1, 2), 0), seeded(seed)
    latent, layout = process.prior(crystals, rng), crystals.layout
    output = {"species": torch.tensor(logits, dtype=torch.float64 if double else torch.float32).expand(6, 100)}
    for s, r in ((1.0, 0.5), (0.5, 1e-3), (1e-3, 0.0)):
        now = at(s, 3)
        latent = process.correct(latent, output, Step(now, at(r, 3), now, layout, rng))
        latent = process.denoise(latent, output, Step(now, at(r, 3), now, layout, rng))
    found = process.decode(latent, crystals).species
    assert torch.equal(found, latent["species"] + 1)
    assert set(found.tolist()) <= set(elements or range(1, 101))


def test_draws_follow_softmax_among_the_allowed_and_ignore_a_common_shift() -> None:
    law = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    logits = torch.zeros(30_000, 100)
    logits[:, :3] = law.log() + 50.0
    logits[:, 3] = inf
    layout = Layout.of((30_000,))
    process = Absorbing().restricted((3, 1, 2))
    hidden = {"species": torch.full((30_000,), MASK)}
    drawn = process.denoise(hidden, {"species": logits}, step(0.5, 0.0, layout))["species"]
    assert chi_square(torch.bincount(drawn, minlength=100)[:3].double(), law) < 13.8  # 0.1 %, 2 degrees of freedom
    assert set(drawn.tolist()) == {0, 1, 2}
    useless = {"species": torch.full((30_000, 100), nan)}
    anything = process.denoise(hidden, useless, step(0.5, 0.0, layout))["species"]
    assert chi_square(torch.bincount(anything, minlength=100)[:3].double(), torch.full_like(law, 1 / 3)) < 13.8


def test_rare_types_are_not_cut_off() -> None:
    """A uniform number in float32 is a multiple of 2^-24 below 1; its Gumbel number cannot make up for 20 nats."""
    logits = torch.full((1, 100), -inf)
    logits[0, :2] = torch.tensor([0.0, -20.0])
    uniform = torch.full((1, 100), 0.5, dtype=torch.float64)
    uniform[0, 1] = 1 - 2.0**-40

    def rand(shape: torch.Size, *, generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
        values = uniform if len(shape) == 2 else at(0.0)
        return values if dtype == torch.float64 else ((values * 2**24).floor() / 2**24).to(dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", rand)
        hidden = {"species": torch.tensor([MASK])}
        drawn = Absorbing().denoise(hidden, {"species": logits}, step(0.5, 0.0, Layout.of((1,))))
    assert drawn["species"].item() == 1


def test_same_seed_same_draws() -> None:
    crystals, process = random_crystals((3, 4), 0), Absorbing()
    output = {"species": torch.randn(7, 100, generator=seeded())}
    hidden = process.prior(crystals, seeded())
    ends = [process.denoise(hidden, output, step(0.9, 0.0, crystals.layout, seed))["species"] for seed in (1, 1, 2)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_decoding_gives_masks_the_commonest_allowed_type_of_their_crystal() -> None:
    crystals = random_crystals((4, 3, 2), 0)
    latent = {"species": torch.tensor([7, 7, 2, MASK, 5, 3, MASK, MASK, MASK])}
    assert Absorbing().decode(latent, crystals).species.tolist() == [8, 8, 3, 8, 6, 4, 4, 1, 1]
    assert Absorbing(elements=(3, 6)).decode(latent, crystals).species.tolist() == [8, 8, 3, 3, 6, 4, 6, 3, 3]


def test_restrictions_add_up() -> None:
    process = Absorbing(elements=(8, 3, 26))
    assert isinstance(process, Restricts)
    assert process.restricted((26, 8, 1)).elements == (8, 26)
    assert process.elements == (8, 3, 26)
    with pytest.raises(KldmError, match="none of the elements"):
        process.restricted((11,))


@pytest.mark.parametrize("elements", [(), (0,), (8, 101), (-1,)])
def test_senseless_elements_are_refused(elements: tuple[int, ...]) -> None:
    with pytest.raises(KldmError, match="elements: must"):
        Absorbing(elements=elements)
    with pytest.raises(KldmError, match="elements: must"):
        Absorbing().restricted(elements)


def test_unknown_options_are_refused() -> None:
    unknown: str = "quartic"
    with pytest.raises(KldmError, match=r"schedule: must be one of linear, cosine, poly2, got 'quartic'"):
        Absorbing(schedule=unknown)  # type: ignore[arg-type]
    with pytest.raises(KldmError, match="loss_weight: must be one of weighted, simple, got 'quartic'"):
        Absorbing(loss_weight=unknown)  # type: ignore[arg-type]


def tiny_model(process: Absorbing) -> JointModel:
    torch.manual_seed(0)
    return JointModel(
        coordinates=TrivializedTorus(),
        lattice=VPEuclidean(codec=LogTan(standardise=False)),
        species=process,
        network=partial(CSPVNet, **NETWORK),
    )


def test_the_network_learns_it() -> None:
    model, crystals = tiny_model(Absorbing()), random_crystals((3, 1, 5), 0, torch.float32)
    losses = model.losses(crystals, torch.tensor([0.9, 0.5, 1e-3]), seeded())
    assert set(losses) == {"coordinates", "lattice", "species"}
    losses["species"].backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert max(gradient.abs().max().item() for gradient in gradients) > 0


@pytest.mark.parametrize(
    "sampler",
    [
        EulerMaruyama(steps=3),
        EulerMaruyama(steps=3, s_min=0.4),
        PredictorCorrector(steps=3),
        PredictorCorrector(steps=3, order="predict_then_correct", corrected=("coordinates", "species")),
    ],
)
@pytest.mark.parametrize("elements", [None, (3, 8)])
def test_samplers_end_inside_the_allowed_elements(sampler: Sampler, elements: tuple[int, ...] | None) -> None:
    model, crystals = (
        tiny_model(Absorbing(elements=elements, remask=True)),
        random_crystals((3, 1, 5), 0, torch.float32),
    )
    sampler.check(model.processes)
    unknown = attrs.evolve(crystals, species=torch.full_like(crystals.species, 50))
    species = set(sampler.sample(model, unknown, seeded()).species.tolist())
    assert species <= set(elements or range(1, 101))
    assert species != {50}


def test_probability_flow_is_refused_in_a_sentence() -> None:
    process = Absorbing()
    assert "flow" not in process.moves
    with pytest.raises(KldmError, match="Absorbing has no move 'flow'"):
        ProbabilityFlow().check(tiny_model(process).processes)
