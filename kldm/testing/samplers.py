"""What every sampler must do with any model whose processes have the moves that it makes."""

from collections.abc import Callable, Mapping
from functools import partial

import attrs
import torch
from torch import Tensor, nn

from kldm.crystals import Crystals, Layout
from kldm.interfaces import DiffusionProcess, GenerativeModel, Latent, Prediction, Sampler
from kldm.model import JointModel
from kldm.networks import CSPVNet
from kldm.processes import Given, LogTan, TrivializedTorus, VPEuclidean
from kldm.testing.crystals import SIZES, expect, generator, random_crystals

SamplerCheck = Callable[[Sampler], None]


def takes_kldm(sampler: Sampler) -> None:
    """KLDM's processes have every move of kldm's own samplers."""
    sampler.check(_model().processes)
    expect(sampler.steps > 0, f"it says that it makes {sampler.steps} steps")


def answers_every_request(sampler: Sampler) -> None:
    """One crystal for each request, with its composition and with numbers that are a crystal's."""
    for sizes in (SIZES, (1,)):
        given = _given(sizes)
        made = _sampled(sampler, given=given)
        expect(
            made.layout.sizes == sizes, f"it makes crystals of {made.layout.sizes} atoms where {sizes} are asked for"
        )
        expect(torch.equal(made.species, given.species), "it changes the species, which are given")
        expect(made.fractional.shape == given.fractional.shape, "positions have another shape than those asked for")
        expect(made.lattice.shape == given.lattice.shape, "lattices have another shape than those asked for")
        expect(((made.fractional >= 0) & (made.fractional < 1)).all(), "positions are not all in [0, 1)")
        expect(made.lattice.isfinite().all() and (made.lattice > 0).all(), "lattices are not all positive numbers")
        expect(not made.lattice.requires_grad, "what it makes is attached to a graph of gradients")


def reports_its_steps(sampler: Sampler) -> None:
    """``progress`` hears of every step."""
    seen: list[int] = []
    sampler.sample(_model(), _given(), generator(0), seen.append)
    expect(sum(seen) == sampler.steps, f"progress hears of {sum(seen)} steps where there are {sampler.steps}")


def draws_from_its_generator_alone(sampler: Sampler) -> None:
    """The same generator gives the same crystals whatever torch's own has done, another one gives others."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        first = _sampled(sampler)
        torch.default_generator.manual_seed(2)
        again, other = _sampled(sampler), _sampled(sampler, seed=1)
    for name in ("fractional", "lattice"):
        a, b, c = (getattr(made, name) for made in (first, again, other))
        expect(torch.equal(a, b), f"{name}: the same generator gives other crystals")
        expect(not torch.equal(a, c), f"{name}: another generator gives the same crystals")


def leaves_model_and_request_alone(sampler: Sampler) -> None:
    """Sampling changes neither parameters nor the request."""
    model, given, kept = _model(), _given(), _given()
    before = [parameter.clone() for parameter in model.parameters()]
    sampler.sample(model, given, generator(0))
    same = all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    expect(same, "it changes parameters of the model")
    untouched = torch.equal(given.fractional, kept.fractional) and torch.equal(given.lattice, kept.lattice)
    expect(untouched, "it writes into the crystals that are asked for")


def does_not_look_at_the_answer(sampler: Sampler) -> None:
    """Positions and lattices of the request are what is to be found."""
    given, other = _given(), random_crystals(SIZES, 5, torch.float32)
    disguised = attrs.evolve(given, fractional=other.fractional, lattice=other.lattice)
    first, second = _sampled(sampler, given=given), _sampled(sampler, given=disguised)
    for name in ("fractional", "lattice"):
        same = torch.equal(getattr(first, name), getattr(second, name))
        expect(same, f"{name}: the crystals depend on the values that are to be found")


def moves_every_modality(sampler: Sampler) -> None:
    """Every modality that the network predicts follows its predictions; none stays at its prior."""
    plain = _sampled(sampler)
    for name, field in (("coordinates", "fractional"), ("lattice", "lattice")):
        other = _sampled(sampler, model=_Louder(_model(), name))
        moved = not torch.equal(getattr(plain, field), getattr(other, field))
        expect(moved, f"{name}: the crystals do not depend on what the network predicts")


SAMPLER_CHECKS: tuple[SamplerCheck, ...] = (
    takes_kldm,
    answers_every_request,
    reports_its_steps,
    draws_from_its_generator_alone,
    leaves_model_and_request_alone,
    does_not_look_at_the_answer,
    moves_every_modality,
)


def check_sampler(sampler: Sampler) -> None:
    """Every check on a sampler, with a small KLDM model of random weights.

    Args:
        sampler: with few steps, as it samples some twenty times.

    Raises:
        AssertionError: one sentence on what does not hold.
        KldmError: it refuses KLDM's processes.
    """
    for check in SAMPLER_CHECKS:
        check(sampler)


@attrs.frozen
class _Louder:
    """A model whose network predicts half as much again for one modality."""

    model: GenerativeModel
    modality: str

    @property
    def processes(self) -> Mapping[str, DiffusionProcess]:
        return self.model.processes

    def predict(self, latents: Mapping[str, Latent], s: Tensor, layout: Layout) -> Mapping[str, Prediction]:
        found = dict(self.model.predict(latents, s, layout))
        found[self.modality] = {name: 1.5 * values for name, values in found[self.modality].items()}
        return found


def _model() -> JointModel:
    """Random weights, the last layers included, so that no prediction is 0."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        built = JointModel(
            coordinates=TrivializedTorus(),
            lattice=VPEuclidean(codec=LogTan(standardise=False)),
            species=Given(),
            network=partial(CSPVNet, hidden=16, layers=1, frequencies=4, time_features=8),
        )
        for parameter in built.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.1)
    return built


def _given(sizes: tuple[int, ...] = SIZES) -> Crystals:
    return random_crystals(sizes, 0, torch.float32)


def _sampled(
    sampler: Sampler, seed: int = 0, given: Crystals | None = None, model: GenerativeModel | None = None
) -> Crystals:
    return sampler.sample(model or _model(), given or _given(), generator(seed))
