"""Checks of samplers, with any model whose processes have the moves that they use."""

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
from kldm.testing.crystals import SIZES, expect, generator, random_crystals, run_checks

ModelFactory = Callable[[], JointModel]
"""Builds the same model for crystal structure prediction at every call, with a network that does not answer 0."""

SamplerCheck = Callable[[Sampler, ModelFactory], None]


def small_model(coordinates: DiffusionProcess | None = None, lattice: DiffusionProcess | None = None) -> JointModel:
    """A small model of random weights, the last layers included, so that no prediction is 0.

    Args:
        coordinates, lattice: the processes; those of KLDM by default.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = JointModel(
            coordinates=coordinates or TrivializedTorus(),
            lattice=lattice or VPEuclidean(codec=LogTan(standardise=False)),
            species=Given(),
            network=partial(CSPVNet, hidden=16, layers=1, frequencies=4, time_features=8),
        )
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.1)
    return model


def accepts_the_processes(sampler: Sampler, model: ModelFactory = small_model) -> None:
    """It accepts the processes of the model."""
    sampler.check(model().processes)
    expect(sampler.steps > 0, f"its number of steps is {sampler.steps}")


def answers_every_request(sampler: Sampler, model: ModelFactory = small_model) -> None:
    """One crystal for each request, with its composition, and with possible positions and lattices."""
    for sizes in (SIZES, (1,)):
        request = _request(sizes)
        crystals = _sampled(sampler, model(), request=request)
        expect(
            crystals.layout.sizes == sizes,
            f"it makes crystals of {crystals.layout.sizes} atoms where {sizes} are requested",
        )
        expect(torch.equal(crystals.species, request.species), "it changes the species, which are given")
        expect(crystals.fractional.shape == request.fractional.shape, "positions have a different shape than requested")
        expect(crystals.lattice.shape == request.lattice.shape, "lattices have a different shape than requested")
        expect(((crystals.fractional >= 0) & (crystals.fractional < 1)).all(), "positions are not all in [0, 1)")
        lattice = crystals.lattice
        expect(lattice.isfinite().all() and (lattice > 0).all(), "lattices are not all positive numbers")
        expect(not crystals.lattice.requires_grad, "its crystals still require gradients")


def reports_its_steps(sampler: Sampler, model: ModelFactory = small_model) -> None:
    """``progress`` is called for every step."""
    seen: list[int] = []
    sampler.sample(model(), _request(), generator(0), seen.append)
    expect(sum(seen) == sampler.steps, f"it reports {sum(seen)} steps and has {sampler.steps}")


def draws_from_its_generator_alone(sampler: Sampler, model: ModelFactory = small_model) -> None:
    """The crystals depend on the generator that is given, and not on torch's global one."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        first = _sampled(sampler, model())
        torch.default_generator.manual_seed(2)
        again, other = _sampled(sampler, model()), _sampled(sampler, model(), seed=1)
    for name in ("fractional", "lattice"):
        a, b, c = (getattr(crystals, name) for crystals in (first, again, other))
        expect(torch.equal(a, b), f"{name}: the same generator gives two different results")
        expect(not torch.equal(a, c), f"{name}: every generator gives the same crystals")


def leaves_model_and_request_alone(sampler: Sampler, model: ModelFactory = small_model) -> None:
    """Sampling changes neither parameters nor the request."""
    built, request, copy = model(), _request(), _request()
    before = [parameter.clone() for parameter in built.parameters()]
    sampler.sample(built, request, generator(0))
    same = all(torch.equal(old, new) for old, new in zip(before, built.parameters(), strict=True))
    expect(same, "it changes parameters of the model")
    same = torch.equal(request.fractional, copy.fractional) and torch.equal(request.lattice, copy.lattice)
    expect(same, "it writes into the request")


def does_not_look_at_the_answer(sampler: Sampler, model: ModelFactory = small_model) -> None:
    """The crystals do not depend on positions and lattices of the request, which are the answer."""
    request, other = _request(), random_crystals(SIZES, 5, torch.float32)
    disguised = attrs.evolve(request, fractional=other.fractional, lattice=other.lattice)
    first, second = _sampled(sampler, model(), request=request), _sampled(sampler, model(), request=disguised)
    for name in ("fractional", "lattice"):
        same = torch.equal(getattr(first, name), getattr(second, name))
        expect(same, f"{name}: the crystals depend on the values in the request")


def moves_every_modality(sampler: Sampler, model: ModelFactory = small_model) -> None:
    """Every modality that the network predicts follows its predictions; none stays at its prior."""
    plain = _sampled(sampler, model())
    for name, field in (("coordinates", "fractional"), ("lattice", "lattice")):
        other = _sampled(sampler, _Louder(model(), name))
        moved = not torch.equal(getattr(plain, field), getattr(other, field))
        expect(moved, f"{name}: the crystals do not depend on what the network predicts")


SAMPLER_CHECKS: tuple[SamplerCheck, ...] = (
    accepts_the_processes,
    answers_every_request,
    reports_its_steps,
    draws_from_its_generator_alone,
    leaves_model_and_request_alone,
    does_not_look_at_the_answer,
    moves_every_modality,
)


def check_sampler(sampler: Sampler, model: ModelFactory = small_model) -> None:
    """Every check on a sampler.

    Args:
        sampler: it should have few steps, as it samples some twenty times.
        model: builds what is sampled; for a sampler that needs moves of other processes than KLDM's, such as
            ``partial(small_model, coordinates=MyProcess())``.

    Raises:
        AssertionError: a check fails; one sentence says what is wrong.
    """
    run_checks(SAMPLER_CHECKS, sampler, model)


@attrs.frozen
class _Louder:
    """A model with the predictions of one modality multiplied by 1.5."""

    model: GenerativeModel
    modality: str

    @property
    def processes(self) -> Mapping[str, DiffusionProcess]:
        return self.model.processes

    def predict(self, latents: Mapping[str, Latent], s: Tensor, layout: Layout) -> Mapping[str, Prediction]:
        prediction = dict(self.model.predict(latents, s, layout))
        prediction[self.modality] = {name: 1.5 * values for name, values in prediction[self.modality].items()}
        return prediction


def _request(sizes: tuple[int, ...] = SIZES) -> Crystals:
    return random_crystals(sizes, 0, torch.float32)


def _sampled(sampler: Sampler, model: GenerativeModel, seed: int = 0, request: Crystals | None = None) -> Crystals:
    return sampler.sample(model, request or _request(), generator(seed))
