"""Flow matching driven by networks that know the answer: the general samplers must return the crystal."""

from collections.abc import Mapping
from functools import partial
from math import sqrt
from typing import Any, Literal

import attrs
import pytest
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.interfaces import DiffusionProcess, Latent, Prediction, Sampler
from kldm.model import JointModel
from kldm.networks import CSPVNet
from kldm.processes import EuclideanFlow, Given, LogTan, TorusFlow, bits_flow, lattice_flow
from kldm.samplers import EulerMaruyama, ProbabilityFlow
from tests.oracles import random_crystals, translation_free_rms
from tests.small import NETWORK

RAW = LogTan(standardise=False)
FIT: dict[str, Any] = {"mean": [1.5, 1.5, 1.5], "std": [0.3, 0.3, 0.3]}
LATTICES: Mapping[str, EuclideanFlow] = {
    "velocity": EuclideanFlow(codec=RAW),
    "x0": EuclideanFlow(codec=RAW, parameterization="x0"),
    "informed": lattice_flow(codec=RAW, fit=FIT),
}


def torus_velocity(state: Tensor, truth: Tensor, s: Tensor, layout: Layout) -> Tensor:
    """E[u | f_s] less its mean over the atoms [N, 3], for one crystal translated uniformly along each axis.

    With d = f_s - f_0 on the circle, a translation tau is possible where all |wrap(d - tau)| <= s / 2, that is, where
    tau + 1/2 lies in a gap between neighbouring d, at least (1 - s) / 2 from both ends. All of one gap give the same
    mean-free displacements: those of the circle cut there. So the expectation is their mean, weighted by how much of
    each gap is possible. Where rounding or the step size left nothing possible, the largest gap decides.

    Args:
        state, truth: [N, 3] in [0, 1).
        s: [B] times.
        layout: all crystals of the same number of atoms n.
    """
    n = layout.sizes[0]
    assert set(layout.sizes) == {n}
    d = ((state - truth) % 1).reshape(-1, n, 3)
    order = d.sort(1)
    gap = torch.cat([order.values[:, 1:] - order.values[:, :-1], order.values[:, :1] + 1 - order.values[:, -1:]], 1)
    possible = (gap - (1 - s).view(-1, 1, 1)).clamp(min=0)
    largest = torch.nn.functional.one_hot(gap.argmax(1), n).transpose(1, 2).to(gap)
    weight = torch.where(possible.sum(1, keepdim=True) > 0, possible, largest)
    weight = weight / weight.sum(1, keepdim=True)
    # Cut behind the k-th smallest: it and those below it are lifted by a turn.
    rank = order.indices.argsort(1)
    lifted = d.unsqueeze(2) + (rank.unsqueeze(2) <= torch.arange(n).view(1, 1, n, 1))
    centred = lifted - lifted.mean(1, keepdim=True)
    return -((centred * weight.unsqueeze(1)).sum(2) / s.view(-1, 1, 1)).reshape(-1, 3)


@attrs.frozen(eq=False)
class FlowOracle:
    """A model whose answers are the exact velocities (or clean numbers) for one known crystal per request."""

    processes: Mapping[str, DiffusionProcess]
    truth: Crystals

    def predict(self, latents: Mapping[str, Latent], s: Tensor, layout: Layout) -> Mapping[str, Prediction]:
        return {name: self._answer(process, latents[name], s, layout) for name, process in self.processes.items()}

    def _answer(self, process: DiffusionProcess, latent: Latent, s: Tensor, layout: Layout) -> Prediction:
        if isinstance(process, TorusFlow):
            return {"flow": torus_velocity(latent["fractional"], self.truth.fractional, s, layout)}
        if not isinstance(process, EuclideanFlow):
            return {}
        channel, start = process.codec.channel, process.codec.encode(self.truth)
        time = (s if channel.per == "crystal" else layout.per_atom(s)).unsqueeze(-1)
        x0 = process.parameterization == "x0"
        return {channel.name: start if x0 else (start - latent[channel.name]) / time}


def oracle(
    truth: Crystals, lattice: EuclideanFlow, species: DiffusionProcess | None = None, annealing: float = 0.0
) -> FlowOracle:
    torus = TorusFlow(anti_annealing=annealing)
    lattice = attrs.evolve(lattice, anti_annealing=annealing)
    return FlowOracle({"coordinates": torus, "lattice": lattice, "species": species or bits_flow()}, truth)


def sample(sampler: Sampler, model: FlowOracle, seed: int = 0) -> Crystals:
    """Sampled from a request that knows nothing but the layout."""
    sampler.check(model.processes)
    truth = model.truth
    blank = Crystals(
        torch.zeros_like(truth.fractional), torch.ones_like(truth.lattice), truth.species * 0 + 1, truth.layout
    )
    return sampler.sample(model, blank, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampler", [ProbabilityFlow(steps=50), EulerMaruyama(steps=50)], ids=["flow", "em"])
@pytest.mark.parametrize("lattice", LATTICES)
@pytest.mark.parametrize("bits", ["velocity", "x0"])
def test_both_samplers_return_the_crystal(sampler: Sampler, lattice: str, bits: Literal["velocity", "x0"]) -> None:
    truth = random_crystals((8,) * 16, seed=1)
    result = sample(sampler, oracle(truth, LATTICES[lattice], bits_flow(parameterization=bits)), seed=2)
    assert torch.equal(result.species, truth.species)
    torch.testing.assert_close(result.lattice, truth.lattice, rtol=0.01, atol=0.0)
    rms = translation_free_rms(result.fractional, truth.fractional, truth.layout)
    assert rms.max() < 1e-3


def test_both_samplers_take_the_same_steps() -> None:
    truth = random_crystals((8,) * 4, seed=1)
    one, other = (
        sample(s, oracle(truth, LATTICES["velocity"])) for s in (ProbabilityFlow(steps=20), EulerMaruyama(steps=20))
    )
    assert torch.equal(one.fractional, other.fractional)
    assert torch.equal(one.lattice, other.lattice)


@pytest.mark.parametrize("s", [0.8, 0.5, 0.2])
def test_halfway_the_spread_is_that_of_the_noising(s: float) -> None:
    """At s each coordinate is off by s u, u uniform: over n atoms, without the mean, (1 - 1/n) s^2 / 12 per axis."""
    truth = random_crystals((6,) * 400, seed=3)
    steps = round(50 * (1 - s))
    result = sample(ProbabilityFlow(steps=steps, s_min=s), oracle(truth, LATTICES["velocity"], Given()), seed=4)
    noised = TorusFlow().noise(truth, torch.full((400,), s, dtype=torch.float64), torch.Generator().manual_seed(5))
    found, expected = (
        translation_free_rms(places, truth.fractional, truth.layout).square().mean().sqrt().item()
        for places in (result.fractional, noised.latent["fractional"])
    )
    assert found == pytest.approx(expected, rel=0.05)
    if s <= 0.5:  # where nothing is wrapped
        assert expected == pytest.approx(sqrt(3 * 5 / 6 / 12) * s, rel=0.03)


@pytest.mark.parametrize("s", [0.95, 0.8, 0.5])
def test_the_oracle_is_the_mean_of_the_targets(s: float) -> None:
    """What it leaves of a target is uncorrelated with itself and with other functions of the state."""
    count = 20_000
    truth = random_crystals((3,) * count, seed=6)
    layout, time = truth.layout, torch.full((count,), s, dtype=torch.float64)
    noised = TorusFlow().noise(truth, time, torch.Generator().manual_seed(7))
    state = noised.latent["fractional"]
    # A common translation of each crystal's truth, which the oracle must not need.
    moved = torch.rand(count, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    velocity = torus_velocity(state, truth.fractional + layout.per_atom(moved), time, layout)
    off = (state - truth.fractional).reshape(count, 3, 3)
    turns = 2 * torch.pi * (off - off.roll(1, 1)).reshape(-1, 3)
    rest = noised.target["flow"] - velocity
    for function in (velocity, turns.sin(), (2 * turns).sin()):
        product = rest * function
        assert product.mean().abs() < 5 * product.std() / product.numel() ** 0.5 + 1e-12
    assert (noised.target["flow"] * turns.sin()).mean().abs() > 0.005


@pytest.mark.parametrize("rate", [1.0, 10.0])
def test_anti_annealing_still_arrives(rate: float) -> None:
    """Faster than the flow, but the fixed point is the same."""
    truth = random_crystals((8,) * 8, seed=1)
    result = sample(ProbabilityFlow(steps=200), oracle(truth, LATTICES["velocity"], Given(), annealing=rate), seed=2)
    assert translation_free_rms(result.fractional, truth.fractional, truth.layout).max() < 1e-3
    torch.testing.assert_close(result.lattice, truth.lattice, rtol=0.01, atol=0.0)


@attrs.frozen(eq=False)
class TwoCells:
    """A model of two equally likely cells: the exact posterior mean under the noising x_s = s z + (1 - s) x_0."""

    lattice: EuclideanFlow
    truths: tuple[Crystals, Crystals]

    @property
    def processes(self) -> Mapping[str, DiffusionProcess]:
        return {"lattice": self.lattice}

    def predict(self, latents: Mapping[str, Latent], s: Tensor, layout: Layout) -> Mapping[str, Prediction]:
        x, time = latents["lattice"]["lattice"], s.unsqueeze(-1)
        starts = torch.stack([self.lattice.codec.encode(truth) for truth in self.truths], -1)
        density = -(((x.unsqueeze(-1) - (1 - time).unsqueeze(-1) * starts) / time.unsqueeze(-1)) ** 2).sum(1) / 2
        mean = (starts * torch.softmax(density, -1).unsqueeze(1)).sum(-1)
        answer = mean if self.lattice.parameterization == "x0" else (mean - x) / time
        return {"lattice": {"lattice": answer}}


@pytest.mark.parametrize("parameterization", ["velocity", "x0"])
def test_two_cells_come_in_equal_parts(parameterization: Literal["velocity", "x0"]) -> None:
    """They differ in one number alone."""
    count = 3000
    one = random_crystals((1,) * count, seed=0)
    cells = torch.tensor([[4.0, 5.0, 6.0, 1.5, 1.6, 1.4], [7.0, 5.0, 6.0, 1.5, 1.6, 1.4]], dtype=torch.float64)
    truths = tuple(attrs.evolve(one, lattice=cell.expand(count, 6)) for cell in cells)
    model = TwoCells(EuclideanFlow(codec=RAW, parameterization=parameterization), (truths[0], truths[1]))
    samples = ProbabilityFlow(steps=50).sample(model, one, torch.Generator().manual_seed(1)).lattice
    close = [((samples / cell - 1).abs() < 0.01).all(-1).double().mean().item() for cell in cells]
    assert sum(close) > 0.98
    assert abs(close[0] - 0.5) < 0.05


@pytest.mark.parametrize("sampler", [ProbabilityFlow(steps=3), EulerMaruyama(steps=3)], ids=["flow", "em"])
@pytest.mark.parametrize("species", [Given(), bits_flow(), bits_flow(elements=(3, 8))], ids=["given", "bits", "held"])
def test_a_network_learns_and_samples_with_it(species: DiffusionProcess, sampler: Sampler) -> None:
    torch.manual_seed(0)
    model = JointModel(
        coordinates=TorusFlow(),
        lattice=lattice_flow(codec=RAW, fit=FIT),
        species=species,
        network=partial(CSPVNet, **NETWORK),
    )
    sampler.check(model.processes)
    crystals = random_crystals((4, 1, 2), 0, torch.float32)
    s, optimiser = torch.tensor([0.3, 1.0, 0.01]), torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(20):  # the same draw each time
        losses.append(model.total(model.losses(crystals, s, torch.Generator().manual_seed(1))))
        optimiser.zero_grad()
        losses[-1].backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert losses[-1] < losses[0]
    samples = sampler.sample(model, crystals, torch.Generator().manual_seed(2))
    assert samples.layout.sizes == (4, 1, 2)
    assert ((samples.fractional >= 0) & (samples.fractional < 1)).all()
    assert samples.lattice.isfinite().all()
    if isinstance(species, Given):
        assert torch.equal(samples.species, crystals.species)
    elif species == bits_flow(elements=(3, 8)):
        assert set(samples.species.tolist()) <= {3, 8}
