from math import pi
from typing import Any, Literal

import attrs
import pytest
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.errors import KldmError
from kldm.interfaces import Correction, DiffusionProcess, Latent, Step
from kldm.processes import Given, TrivializedTorus
from kldm.processes.kinetic import Kernel
from tests.oracles import Oracle, random_crystals, translation_free_rms

TURN = 2 * pi


def _gas(particles: int) -> Crystals:
    """Many independent particles that all start at f = 0.3."""
    layout = Layout.of([particles])
    fractional = torch.full((particles, 3), 0.3, dtype=torch.float64)
    return Crystals(fractional, torch.ones(1, 6, dtype=torch.float64), torch.ones(particles, dtype=torch.int64), layout)


def _simulate(initial_std: float, time: float, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Eq. 12 in 150 steps, each exact for v and trapezoidal for r: displacement and velocity at ``time``."""
    v = initial_std * torch.randn(count, generator=rng, dtype=torch.float64)
    r, step = torch.zeros_like(v), time / 150
    decay, kick = torch.exp(torch.tensor(-step)).item(), (1 - torch.exp(torch.tensor(-2 * step)).item()) ** 0.5
    for _ in range(150):
        after = decay * v + kick * torch.randn(count, generator=rng, dtype=torch.float64)
        r, v = r + step * (v + after) / 2, after
    return r, v


@pytest.mark.parametrize(
    ("initial_std", "s", "horizon"), [(0.0, 1.0, 2.0), (0.0, 0.3, 2.0), (1.0, 0.5, 2.0), (0.0, 1.0, 3.5)]
)
def test_noise_is_what_the_dynamics_make_of_the_particles(initial_std: float, s: float, horizon: float) -> None:
    rng, count = torch.Generator().manual_seed(1), 100_000
    process = TrivializedTorus(
        parameterization="direct",
        initial_velocity_std=initial_std,
        zero_net_translation=False,
        variance_floor=0.0,
        horizon=horizon,
    )
    drawn = process.noise(_gas(count), torch.tensor([s], dtype=torch.float64), rng).latent
    v = drawn["velocity"][:, 0] * TURN
    angle = torch.remainder((drawn["fractional"][:, 0] - 0.3) * TURN + pi, TURN) - pi
    r, v_true = _simulate(initial_std, horizon * s, count, rng)
    angle_true = torch.remainder(r + pi, TURN) - pi
    error = v_true.std().item() / count**0.5
    assert v.mean().item() == pytest.approx(v_true.mean().item(), abs=6 * error)
    assert v.var().item() == pytest.approx(v_true.var().item(), rel=0.03)
    for wave in (1, 2):
        for found, expected in (
            (torch.cos(wave * angle), torch.cos(wave * angle_true)),
            (v * torch.sin(wave * angle), v_true * torch.sin(wave * angle_true)),
        ):
            assert found.mean().item() == pytest.approx(expected.mean().item(), abs=0.015)

    def histogram(x: Tensor, y: Tensor) -> Tensor:
        width = angle_true.std().item() * 2.5, v_true.std().item() * 2.5
        bins = torch.stack([x / width[0], y / width[1]], -1).clamp(-0.999, 0.999)
        cell = ((bins + 1) * 8).long()
        return torch.bincount(cell[:, 0] * 16 + cell[:, 1], minlength=256).double()

    counts, true_counts = histogram(angle, v), histogram(angle_true, v_true)
    seen = counts + true_counts > 20
    chi_square = ((counts - true_counts).square() / (counts + true_counts))[seen].sum().item() / int(seen.sum())
    assert chi_square < 1.4  # 1 in the mean; the standard deviation is about 0.1


@pytest.mark.parametrize("horizon", [2.0, 3.5])
def test_target_is_g_over_its_root_mean_square_and_of_unit_size(horizon: float) -> None:
    process = TrivializedTorus(zero_net_translation=False, horizon=horizon)
    for s in (0.001, 0.1, 0.5, 1.0):
        rng = torch.Generator().manual_seed(2)
        target = process.noise(_gas(50_000), torch.tensor([s], dtype=torch.float64), rng).target["velocity"]
        assert target.square().mean().item() == pytest.approx(1.0, rel=0.02)


def test_direct_target_is_the_score_of_the_simplified_one() -> None:
    """Both parameterisations, fed their own targets, must make the very same step."""
    crystals = random_crystals((1, 3, 8), 0)
    s = torch.tensor([0.9, 0.4, 0.05], dtype=torch.float64)
    ends = []
    for process in (TrivializedTorus(), TrivializedTorus(parameterization="direct")):
        noised = process.noise(crystals, s, torch.Generator().manual_seed(4))
        step = Step(s, s * 0.9, s, crystals.layout, torch.Generator().manual_seed(5))
        ends.append(process.denoise(noised.latent, noised.target, step))
    for name in ("fractional", "velocity"):
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("s", [0.1, 0.5, 1.0])
def test_direct_targets_with_initial_velocities_average_to_the_marginal_score(s: float) -> None:
    """Over uniformly translated crystals v alone is N(0, sigma_v^2 + exp(-2t) std^2), whose score is linear in v."""
    process = TrivializedTorus(parameterization="direct", initial_velocity_std=1.5, zero_net_translation=False)
    noised = process.noise(_gas(100_000), torch.tensor([s], dtype=torch.float64), torch.Generator().manual_seed(6))
    v, target = noised.latent["velocity"] * TURN, noised.target["velocity"]
    kernel = Kernel.at(torch.tensor(2 * s, dtype=torch.float64), 1e-6)
    variance = (kernel.velocity_variance + (1.5 * kernel.decay) ** 2).item()
    slope = ((v * target).mean() / v.square().mean()).item()
    assert slope == pytest.approx(-1 / variance, rel=0.02)


def test_inverse_square_weight_makes_the_loss_of_silence_one_at_every_time() -> None:
    process = TrivializedTorus(
        parameterization="direct", loss_weight="inverse_square_target", zero_net_translation=False
    )
    gas = _gas(50_000)
    for time in (0.001, 0.3, 1.0):
        s = torch.tensor([time], dtype=torch.float64)
        noised = process.noise(gas, s, torch.Generator().manual_seed(7))
        silence = {"velocity": torch.zeros_like(noised.target["velocity"])}
        assert process.loss(silence, noised, s, gas.layout).item() == pytest.approx(1.0, rel=0.02)


def test_nothing_translates_a_crystal() -> None:
    crystals = random_crystals((2, 5, 20), 1)
    process, s = TrivializedTorus(), torch.tensor([0.8, 0.5, 0.1], dtype=torch.float64)
    noised = process.noise(crystals, s, torch.Generator().manual_seed(0))
    pushed = {"velocity": torch.randn(27, 3, dtype=torch.float64) + 5}
    step = Step(s, s / 2, s, crystals.layout, torch.Generator().manual_seed(0))
    for velocity in (
        noised.latent["velocity"],
        noised.target["velocity"],
        process.prior(crystals, step.rng)["velocity"],
        process.denoise(noised.latent, pushed, step)["velocity"],
        process.correct(noised.latent, pushed, step)["velocity"],
    ):
        assert crystals.layout.mean(velocity).abs().max() < 1e-12
        assert velocity.abs().max() > 1e-3
    shifted = {"velocity": noised.target["velocity"] + 3}
    assert process.loss(shifted, noised, s, crystals.layout).item() < 1e-20


def test_a_one_atom_crystal_stays_where_it_is() -> None:
    crystals = random_crystals((1,), 2)
    process, s = TrivializedTorus(), torch.ones(1, dtype=torch.float64)
    latent = process.prior(crystals, torch.Generator().manual_seed(0))
    step = Step(s, s * 0, s, crystals.layout, torch.Generator().manual_seed(0))
    output = {"velocity": torch.full((1, 3), 2.0, dtype=torch.float64)}
    for after in (
        process.denoise(latent, output, step),
        process.flow(latent, output, step),
        process.predict(latent, output, step),
        process.correct(latent, output, step),
    ):
        assert torch.equal(after["fractional"], latent["fractional"])
        assert (after["velocity"] == 0).all()


def test_correction_has_the_size_that_tau_asks_for() -> None:
    crystals = random_crystals((400,), 3)
    process, s = TrivializedTorus(parameterization="direct"), torch.full((1,), 0.5, dtype=torch.float64)
    latent = process.prior(crystals, torch.Generator().manual_seed(0))
    score = crystals.layout.centred(torch.randn(400, 3, dtype=torch.float64))
    delta = 0.25 / score.square().mean()
    step = Step(s, s - 0.1, s, crystals.layout, torch.Generator().manual_seed(9))
    after = process.correct(latent, {"velocity": score}, attrs.evolve(step, correction=Correction(positions=False)))
    assert torch.equal(after["fractional"], latent["fractional"])
    noise = (after["velocity"] - latent["velocity"]) * TURN - delta * score
    assert noise.var().item() == pytest.approx(2 * delta.item(), rel=0.15)
    step = Step(s, s - 0.1, s, crystals.layout, torch.Generator().manual_seed(9))
    moved = process.correct(latent, {"velocity": score}, step)
    torch.testing.assert_close(moved["velocity"], after["velocity"])
    back = (latent["fractional"] - 2 * 0.1 * after["velocity"]) % 1
    torch.testing.assert_close(moved["fractional"], back)


def _rms(moves: str, steps: int, process: TrivializedTorus, positions: bool = True) -> float:
    """Median deviation of samples from the truth an oracle knows, in fractional units."""
    truth = random_crystals((8,) * 16, 5)
    processes: dict[str, DiffusionProcess] = {"coordinates": process, "species": Given()}
    oracle, rng = Oracle(processes, (truth,)), torch.Generator().manual_seed(6)
    latent, correction = process.prior(truth, rng), Correction(positions=positions)
    for k in range(steps, 0, -1):
        s, r = (torch.full((16,), time / steps, dtype=torch.float64) for time in (k, k - 1))
        step = Step(s, r, s, truth.layout, rng, correction)
        if moves == "correct, predict":
            output = oracle.predict({"coordinates": latent}, s, truth.layout)["coordinates"]
            latent = process.correct(latent, output, step)
        output = oracle.predict({"coordinates": latent}, s, truth.layout)["coordinates"]
        latent = process.moves[moves if moves in process.moves else "predict"](latent, output, step)
        if moves == "predict, correct":
            output = oracle.predict({"coordinates": latent}, r, truth.layout)["coordinates"]
            latent = process.correct(latent, output, attrs.evolve(step, now=r))
    rms = translation_free_rms(latent["fractional"], truth.fractional, truth.layout)
    assert rms.max() < 10 * rms.median()  # none has gone astray
    return rms.median().item()


@pytest.mark.parametrize(
    ("moves", "positions", "steps", "expected"),
    [
        ("denoise", True, 1000, 2.6e-4),
        ("denoise", True, 100, 9e-3),
        ("flow", True, 100, 1.7e-4),
        ("correct, predict", True, 100, 3.0e-3),
        ("correct, predict", False, 100, 1.0e-3),
        ("predict, correct", False, 100, 1.0e-3),
    ],
)
def test_reverse_process_returns_to_the_truth(moves: str, positions: bool, steps: int, expected: float) -> None:
    assert _rms(moves, steps, TrivializedTorus(), positions) == pytest.approx(expected, rel=0.25)


def test_direct_parameterization_returns_to_the_truth_as_well() -> None:
    assert _rms("denoise", 100, TrivializedTorus(parameterization="direct")) == pytest.approx(9e-3, rel=0.25)


def test_without_a_floor_the_last_step_reaches_the_truth_ever_closer() -> None:
    """At least of first order in the step: ten times the steps, at most a tenth of the error."""
    process = TrivializedTorus(variance_floor=0.0)
    assert _rms("flow", 10, process) / _rms("flow", 100, process) > 10


def test_two_equally_likely_crystals_are_each_found_half_of_the_time() -> None:
    one, other = random_crystals((4,) * 400, 7), random_crystals((4,) * 400, 8)
    process, rng = TrivializedTorus(), torch.Generator().manual_seed(0)
    oracle = Oracle({"coordinates": process}, (one, other))
    latent = process.prior(one, rng)
    for k in range(60, 0, -1):
        s, r = (torch.full((400,), time / 60, dtype=torch.float64) for time in (k, k - 1))
        output = oracle.predict({"coordinates": latent}, s, one.layout)["coordinates"]
        latent = process.denoise(latent, output, Step(s, r, s, one.layout, rng))
    near = translation_free_rms(latent["fractional"], one.fractional, one.layout) < 0.06
    far = translation_free_rms(latent["fractional"], other.fractional, one.layout) < 0.06
    assert (near | far).double().mean() > 0.99
    assert near.double().mean().item() == pytest.approx(0.5, abs=0.075)  # three standard deviations of 400 draws


def test_decoded_positions_lie_below_one_in_float32() -> None:
    crystals = random_crystals((3,), 9, torch.float32)
    latent = {"fractional": torch.tensor([[-1e-9, 1.0, 0.999999999]] * 3), "velocity": torch.zeros(3, 3)}
    fractional = TrivializedTorus().decode(latent, crystals).fractional
    assert (fractional >= 0).all()
    assert (fractional < 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"initial_velocity_std": 0.5},
            "initial_velocity_std: must be 0.0 with the simplified parameterization, got 0.5",
        ),
        ({"loss_weight": "inverse_square_target"}, "loss_weight: must be uniform with the simplified"),
        ({"horizon": 0.0}, "horizon: must be above 0 and at most 100, got 0.0"),
        ({"horizon": float("nan")}, "horizon: must be above 0 and at most 100, got nan"),
        ({"variance_floor": -1e-6}, "variance_floor: must be at least 0 and below 1, got -1e-06"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(KldmError, match=f"^{message}"):
        TrivializedTorus(**options)


def test_without_a_floor_float32_stays_finite_down_to_the_very_end() -> None:
    crystals = random_crystals((1, 2, 9), 10, torch.float32)
    process, rng = TrivializedTorus(variance_floor=0.0), torch.Generator().manual_seed(0)
    latent, output = process.prior(crystals, rng), {"velocity": torch.randn(12, 3, generator=rng)}
    for s, r in ((1.0, 0.5), (0.5, 1e-6), (1e-6, 0.0)):
        step = Step(torch.full((3,), s), torch.full((3,), r), torch.full((3,), r), crystals.layout, rng)
        latent = process.correct(process.predict(latent, output, step), output, step)
        assert all(torch.isfinite(values).all() for values in latent.values())


def _translated(size: int, count: int, seed: int) -> Crystals:
    """So many copies of one crystal, each translated by a uniform vector."""
    crystal = random_crystals((size,), 1)
    layout = Layout.of((size,) * count)
    shift = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    fractional = (crystal.fractional.repeat(count, 1) + layout.per_atom(shift)) % 1
    return Crystals(fractional, crystal.lattice.repeat(count, 1), crystal.species.repeat(count), layout)


@pytest.mark.parametrize(
    ("horizon", "displacement_noise", "slope"),
    [(2.0, "free", 1.0), (3.0, "free", 1.0), (4.0, "free", 1.0), (2.0, "projected", 1.007), (3.0, "projected", 1.2)],
)
def test_targets_regress_to_the_exact_score_if_the_displacement_noise_is_free(
    horizon: float, displacement_noise: Literal["projected", "free"], slope: float
) -> None:
    """At s = 1, four atoms; the score of the translated crystal by quadrature. Projected noise is an exception."""
    process = TrivializedTorus(horizon=horizon, displacement_noise=displacement_noise)
    truth = _translated(4, 4000, 0)
    s = torch.ones(4000, dtype=torch.float64)
    noised = process.noise(truth, s, torch.Generator().manual_seed(2))
    oracle = Oracle({"coordinates": process}, (truth, truth))
    score = oracle.predict({"coordinates": noised.latent}, s, truth.layout)["coordinates"]["velocity"]
    found = (score * noised.target["velocity"]).sum() / score.square().sum()
    assert found.item() == pytest.approx(slope, abs=0.05)


def test_what_is_shown_is_the_clean_position_with_the_wrapped_noise_alone() -> None:
    process = TrivializedTorus(shows="displacement_free", displacement_noise="free", zero_net_translation=False)
    gas, s = _gas(50_000), torch.tensor([0.5], dtype=torch.float64)
    latent = process.noise(gas, s, torch.Generator().manual_seed(0)).latent
    assert [channel.name for channel in process.reads] == ["fractional"]
    shown = process.shown(latent, s, gas.layout)
    assert set(shown) == {"fractional"}
    residual = ((shown["fractional"] - gas.fractional + 0.5) % 1 - 0.5) * TURN
    assert residual.std().item() == pytest.approx(process.log_noise(s).exp().item(), rel=0.01)
    assert abs(float((residual * latent["velocity"]).mean())) < 1e-3  # independent of the velocity
    same = TrivializedTorus(displacement_noise="free", zero_net_translation=False)
    assert same.shown(latent, s, gas.layout) is latent


def test_a_network_that_does_not_see_the_velocity_cannot_predict_the_whole_score() -> None:
    with pytest.raises(KldmError, match="shows: must be state with the direct parameterization"):
        TrivializedTorus(parameterization="direct", shows="displacement_free")
    with pytest.raises(KldmError, match="shows: must be one of state, displacement_free"):
        TrivializedTorus(shows="all")  # type: ignore[arg-type]
    with pytest.raises(KldmError, match="displacement_noise: must be one of projected, free"):
        TrivializedTorus(displacement_noise="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("step_size", ["observed", "expected"])
def test_corrections_settle_at_the_variance_that_their_docstrings_say(
    step_size: Literal["observed", "expected"],
) -> None:
    """120 corrections of the velocities of crystals of five atoms whose displacement says nothing of them; with the
    step of the expected square at 1 / (1 - tau / 2), with that of the observed one further off."""
    layout = Layout.of((5,) * 300)
    process = TrivializedTorus(parameterization="direct")
    s = torch.full((300,), 0.5, dtype=torch.float64)
    variance = Kernel.at(2.0 * s[:1], process.variance_floor).velocity_variance.item()
    rng = torch.Generator().manual_seed(0)
    start = layout.centred(torch.randn(layout.total, 3, generator=rng, dtype=torch.float64))
    latent: Latent = {"fractional": torch.zeros_like(start), "velocity": start * variance**0.5 / TURN}
    found = []
    for number in range(120):
        score = -latent["velocity"] * TURN / variance
        step = Step(s=s, r=s, now=s, layout=layout, rng=rng)
        options = Correction(tau=0.25, positions=False, step_size=step_size)
        latent = process.correct(latent, {"velocity": score}, attrs.evolve(step, correction=options))
        if number >= 40:
            found.append(float((latent["velocity"] * TURN).square().mean() * 5 / 4 / variance))
    expected_square = (
        variance
        * (  # what the option takes for E[S^2], in units of the true one here
            (Kernel.at(2.0 * s[:1], 1e-6).gain * Kernel.at(2.0 * s[:1], 1e-6).score_size).square() + 1 / variance
        )
    )
    settled = 1 / (1 - 0.25 / expected_square.item() / 2) if step_size == "expected" else 1.33
    assert sum(found) / len(found) == pytest.approx(settled, rel=0.04)
