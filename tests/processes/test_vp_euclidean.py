from typing import Literal

import attrs
import pytest
import torch
from torch import Tensor

from kldm.crystals import Crystals, CrystalStore, Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, Correction, Noised, Schedule, Step
from kldm.processes import Cosine, Linear, LogTan, Matrix, VPEuclidean
from tests.oracles import Oracle, random_crystals

Moves = Literal["denoise", "flow", "exponential", "predict"]
RAW = LogTan(standardise=False)


def _run(process: VPEuclidean, moves: Moves, steps: int, corrected: bool = False) -> float:
    """Median relative error of the cells that an oracle leads to."""
    truth = random_crystals((3,) * 64, 1)
    oracle, rng = Oracle({"lattice": process}, (truth,)), torch.Generator().manual_seed(2)
    latent = process.prior(truth, rng)
    for k in range(steps, 0, -1):
        s, r = (torch.full((64,), time / steps, dtype=torch.float64) for time in (k, k - 1))
        step = Step(s, r, s, truth.layout, rng)
        if corrected:
            output = oracle.predict({"lattice": latent}, s, truth.layout)["lattice"]
            latent = process.correct(latent, output, step)
        output = oracle.predict({"lattice": latent}, s, truth.layout)["lattice"]
        latent = process.moves[moves](latent, output, step)
    error = process.decode(latent, truth).lattice / truth.lattice - 1
    return error.abs().max(-1).values.median().item()


@pytest.mark.parametrize("parameterization", ["x0", "eps"])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
@pytest.mark.parametrize("moves", ["flow", "exponential", "predict"])
def test_semi_linear_steps_are_exact_for_an_exact_prediction(
    parameterization: Literal["x0", "eps"], schedule: Schedule, moves: Moves
) -> None:
    process = VPEuclidean(codec=RAW, schedule=schedule, parameterization=parameterization)
    assert _run(process, moves, 20) < 1e-6
    assert _run(process, moves, 20, corrected=True) < 1e-6


@pytest.mark.parametrize("parameterization", ["x0", "eps"])
def test_euler_maruyama_converges_at_first_order(parameterization: Literal["x0", "eps"]) -> None:
    process = VPEuclidean(codec=RAW, parameterization=parameterization)
    coarse, fine = _run(process, "denoise", 100), _run(process, "denoise", 1000)
    assert fine < 0.005
    assert coarse / fine > 10


def test_parameterizations_make_the_same_step_of_their_own_targets() -> None:
    crystals, s = random_crystals((2, 3), 0), torch.tensor([0.9, 0.2], dtype=torch.float64)
    for name in ("denoise", "flow", "exponential"):
        ends: list[Tensor] = []
        for parameterization in ("x0", "eps"):
            process = VPEuclidean(codec=RAW, parameterization=parameterization)
            noised = process.noise(crystals, s, torch.Generator().manual_seed(1))
            step = Step(s, s / 2, s, crystals.layout, torch.Generator().manual_seed(2))
            move = {"denoise": process.denoise, "flow": process.flow, "exponential": process.exponential}[name]
            ends.append(move(noised.latent, noised.target, step)["lattice"])
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("moves", ["denoise", "exponential"])
def test_stochastic_steps_carry_the_prior_of_gaussian_data_to_the_data(moves: Moves) -> None:
    """For data N(0, 0.5^2) the exact prediction is linear in x; the result must have the data's variance."""
    process = VPEuclidean(codec=RAW, parameterization="x0")
    count, steps = 4_000, 600
    crystals, rng = random_crystals((1,) * count, 0), torch.Generator().manual_seed(3)
    latent = process.prior(crystals, rng)
    for k in range(steps, 0, -1):
        s, r = (torch.full((count,), time / steps, dtype=torch.float64) for time in (k, k - 1))
        alpha, sigma = process.schedule.alpha(s).unsqueeze(-1), process.schedule.sigma(s).unsqueeze(-1)
        output = {"lattice": latent["lattice"] * alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)}
        move = process.denoise if moves == "denoise" else process.exponential
        latent = move(latent, output, Step(s, r, s, crystals.layout, rng))
    assert latent["lattice"].mean().abs() < 0.02
    assert latent["lattice"].std().item() == pytest.approx(0.5, rel=0.025)


def test_eta_of_nought_is_the_flow() -> None:
    crystals, s = random_crystals((2, 3), 0), torch.tensor([0.9, 0.2], dtype=torch.float64)
    process = VPEuclidean(codec=RAW, eta=0.0)
    noised = process.noise(crystals, s, torch.Generator().manual_seed(1))
    step = Step(s, s / 2, s, crystals.layout, torch.Generator().manual_seed(2))
    expected = process.flow(noised.latent, noised.target, step)["lattice"]
    torch.testing.assert_close(process.exponential(noised.latent, noised.target, step)["lattice"], expected)


def test_correction_follows_tau_for_each_crystal_and_skips_a_vanished_score() -> None:
    crystals = random_crystals((1,) * 2000, 0)
    process = VPEuclidean(codec=RAW, parameterization="eps")
    s = torch.full((2000,), 0.5, dtype=torch.float64)
    eps = torch.full((2000, 6), 2.0, dtype=torch.float64)
    eps[0] = 0
    latent = process.prior(crystals, torch.Generator().manual_seed(0))
    step = Step(s, s / 2, s, crystals.layout, torch.Generator().manual_seed(1))
    moved = process.correct(latent, {"lattice": eps}, step)["lattice"] - latent["lattice"]
    assert (moved[0] == 0).all()
    sigma = process.schedule.sigma(s)[0].item()
    delta = 0.25 * sigma**2 / 4
    assert moved[1:].mean().item() == pytest.approx(-2 * delta / sigma, abs=0.016)
    assert moved[1:].var().item() == pytest.approx(2 * delta, rel=0.06)


def test_per_atom_channels_take_the_times_of_their_crystals() -> None:
    class Positions:
        """Fractional coordinates as plain numbers."""

        @property
        def channel(self) -> Channel:
            return Channel("place", 3, "atom", "real")

        def encode(self, crystals: Crystals) -> Tensor:
            return crystals.fractional

        def decode(self, values: Tensor, into: Crystals) -> Crystals:
            return into

    crystals, s = random_crystals((3, 2), 0), torch.tensor([1.0, 1e-6], dtype=torch.float64)
    process = VPEuclidean(codec=Positions())
    rng = torch.Generator().manual_seed(0)
    assert process.prior(crystals, rng)["place"].shape == (5, 3)
    noised = process.noise(crystals, s, rng)
    torch.testing.assert_close(noised.latent["place"][3:], crystals.fractional[3:], rtol=0.0, atol=2e-3)
    assert (noised.latent["place"][:3] - crystals.fractional[:3]).abs().max() > 0.3
    step = Step(s, s / 2, s, crystals.layout, rng)
    for after in (
        process.denoise(noised.latent, noised.target, step),
        process.correct(noised.latent, noised.target, step),
    ):
        assert after["place"].shape == (5, 3)
        assert torch.isfinite(after["place"]).all()


def test_statistics_are_the_codecs() -> None:
    crystals = random_crystals((2,) * 30, 0, torch.float32)
    store = CrystalStore(crystals.fractional, crystals.species, crystals.lattice, (2,) * 30, ("",) * 30)
    process = VPEuclidean(codec=LogTan())
    assert process.statistics() == {}
    fitted = process.fitted(store)
    assert fitted.statistics() == {"codec": LogTan().fitted(store).statistics()}
    assert isinstance(fitted.noise(crystals, torch.ones(30), torch.Generator().manual_seed(0)), Noised)
    assert VPEuclidean(codec=RAW).fitted(store).statistics() == {}


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(KldmError, match=r"eta: must be from 0 to 1, got 1.5"):
        VPEuclidean(codec=RAW, eta=1.5)


def test_only_numbers_and_matrices_are_diffused() -> None:
    class Tokens(Matrix):
        @property
        def channel(self) -> Channel:
            return Channel("lattice", 9, "crystal", "token")

    assert VPEuclidean(codec=Matrix()).reads == (Matrix().channel,)
    with pytest.raises(KldmError, match="codec: the codec's channel must be real or matrix, not token"):
        VPEuclidean(codec=Tokens())


@pytest.mark.parametrize(("step_size", "settled"), [("observed", 1.69), ("expected", 1.143)])
def test_corrections_settle_at_the_variance_that_the_docstring_says(
    step_size: Literal["observed", "expected"], settled: float
) -> None:
    """Of the six numbers of a lattice at tau = 0.25: 1 / (1 - tau / 2) with the expected square."""
    process = VPEuclidean(codec=LogTan(standardise=False), parameterization="eps")
    layout, s = Layout.of((1,) * 2000), torch.full((2000,), 0.5, dtype=torch.float64)
    sigma = process.schedule.sigma(s[:1])
    rng = torch.Generator().manual_seed(0)
    x, found = sigma * torch.randn(2000, 6, generator=rng, dtype=torch.float64), []
    for number in range(120):
        step = Step(s=s, r=s, now=s, layout=layout, rng=rng)
        options = Correction(tau=0.25, step_size=step_size)
        x = process.correct({"lattice": x}, {"lattice": x / sigma}, attrs.evolve(step, correction=options))["lattice"]
        if number >= 40:
            found.append(float((x / sigma).square().mean()))
    assert sum(found) / len(found) == pytest.approx(settled, rel=0.03)
