"""Neither a training step nor a step of a sampler makes the host wait for the device.

Everything is done once before it is watched: tables and index tensors are made when they are first asked for.
"""

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.errors import KldmError
from kldm.interfaces import DiffusionProcess, GenerativeModel, Latent, Prediction, Sampler
from kldm.model import JointModel
from kldm.processes import Absorbing
from kldm.recipe import Tree, read_recipe
from kldm.registry import samplers
from kldm.runs.experiment import Experiment, assemble, fitted
from kldm.samplers import EulerMaruyama, PredictorCorrector, X0Flow
from kldm.sampling.constraints import Constraints, constrained
from tests.small import OVERRIDES, RECIPES, needs_gpu, random_store, small_conditional_model, small_dng_model
from tests.synchronisation import DEVICES, META, generator, unsynchronised, watched

STORE = random_store((4, 1, 2, 7, 1))
SAMPLERS: Mapping[str, Sampler] = {
    **{name: samplers.get(name)(steps=2) for name in samplers.names() if samplers.get(name).__module__[:5] == "kldm."},
    "exponential": EulerMaruyama(steps=2, euclidean="exponential"),
    "predict_then_correct": PredictorCorrector(steps=2, order="predict_then_correct"),
    "x0_flow, stochastic": X0Flow(steps=2, stochastic=True, over={"coordinates": 2.0}),
    "landing": EulerMaruyama(steps=2, land=True),
    "expected step": PredictorCorrector(steps=2, step_size="expected"),
}


@pytest.fixture(autouse=True)
def no_autocast_of_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast does not know the device without values; all that it would add is casts by the device."""
    enabled, autocast = torch.is_autocast_enabled, torch.autocast

    def is_enabled(kind: str) -> bool:
        return kind != META and enabled(kind)

    def context(kind: str, **options: Any) -> AbstractContextManager[Any]:
        return nullcontext() if kind == META else autocast(kind, **options)

    monkeypatch.setattr(torch, "is_autocast_enabled", is_enabled)
    monkeypatch.setattr(torch, "autocast", context)


def named(tree: Tree) -> Tree:
    """What a model is made of: components and their kinds, without numbers."""
    kept = {key: named(value) if isinstance(value, dict) else value for key, value in tree.items() if key != "weights"}
    return {key: value for key, value in kept.items() if isinstance(value, dict | str | bool)}


def families() -> tuple[str, ...]:
    """One of the shipped recipes for each kind of model."""
    found: dict[str, str] = {}
    for path in sorted(RECIPES.rglob("*.cfg"), key=lambda path: (len(path.parts), path)):
        if path.parent.name != "parts":
            model = read_recipe(path)["model"]
            assert isinstance(model, dict)
            found.setdefault(
                json.dumps(named(model), sort_keys=True), path.relative_to(RECIPES).with_suffix("").as_posix()
            )
    return tuple(found.values())


FAMILIES = families()

each_device = pytest.mark.parametrize("device", DEVICES)
each_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def experiment(family: str) -> Experiment:
    return fitted(*assemble(read_recipe(RECIPES / f"{family}.cfg", OVERRIDES)), STORE)[0]


def model_on(device: str, family: str) -> JointModel:
    """A copy: without values a model cannot move on to another device."""
    return copy.deepcopy(experiment(family).model).to(device)


@attrs.define
class Watched:
    """A model that watches everything from its first call on, until ``stack`` is closed."""

    model: GenerativeModel
    device: str
    stack: ExitStack
    calls: int = 0

    @property
    def processes(self) -> Mapping[str, DiffusionProcess]:
        return self.model.processes

    def predict(self, latents: Mapping[str, Latent], s: Tensor, layout: Layout) -> Mapping[str, Prediction]:
        if not self.calls:
            self.stack.enter_context(unsynchronised(self.device))
        self.calls += 1
        return self.model.predict(latents, s, layout)


def sample_watched(sampler: Sampler, model: GenerativeModel, given: Crystals, device: str) -> None:
    sampler.sample(model, given, generator(device))
    with ExitStack() as stack:
        watching = Watched(model, device, stack)
        sampler.sample(watching, given, generator(device))
    assert watching.calls >= sampler.steps


@needs_gpu
def test_a_batch_is_put_together_without_waiting() -> None:
    store = STORE.to("cuda")
    store.batch([0])
    with unsynchronised("cuda"):
        made = store.batch([3, 1])
    assert made.layout.num_atoms.tolist() == [7, 1]


@each_device
@each_family
def test_training(family: str, device: str) -> None:
    model, rng, clean = model_on(device, family), generator(device), STORE.batch(range(5)).to(device)
    augmentation = experiment(family).training.augmentation

    def step(s: Tensor) -> None:
        described = clean if augmentation is None else augmentation.augmented(clean, rng)
        model.total(model.losses(described, s, rng)).backward()  # type: ignore[no-untyped-call]

    step(torch.rand(5, device=device))
    with unsynchronised(device):
        step(torch.rand(5, device=device))


@each_device
@each_family
@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling(name: str, family: str, device: str) -> None:
    model = model_on(device, family)
    try:
        SAMPLERS[name].check(model.processes)
    except KldmError:
        pytest.skip("not a sampler for these processes")
    sample_watched(SAMPLERS[name], model, STORE.batch(range(5)).to(device), device)


@each_device
def test_a_property_as_condition(device: str) -> None:
    model, clean = small_conditional_model().to(device), STORE.batch(range(5)).to(device)
    sample_watched(SAMPLERS["euler_maruyama.v1"], model, clean, device)
    s, rng = torch.rand(5, device=device), generator(device)
    model.losses(clean, s, rng)
    with unsynchronised(device):
        model.losses(clean, s, rng)


@each_device
@pytest.mark.parametrize("remask", [False, True])
@pytest.mark.parametrize("name", ["euler_maruyama.v1", "predictor_corrector.v1"])
def test_sampling_under_constraints(name: str, remask: bool, device: str) -> None:
    """Elements, and known atoms, types and cells."""
    store = STORE.to(device)
    known = torch.arange(len(store.species)) % 2 == 0
    constraints = Constraints(
        elements=tuple(range(1, 101, 2)), positions=known, species=known, cell=torch.tensor([True, False] * 2 + [True])
    )
    model = small_dng_model(Absorbing(remask=remask)).to(device)
    bound = constrained(model, constraints, store, range(5))
    sample_watched(SAMPLERS[name], bound, store.batch(range(5)), device)


@pytest.mark.parametrize("family", ["kldm_x0_onehot_mp20_dng", "kldm_x0_bits_mp20_dng", "kldm_x0_absorbing_mp20_dng"])
@each_device
def test_sampling_with_allowed_elements(family: str, device: str) -> None:
    model, store = model_on(device, family), STORE.to(device)
    bound = constrained(model, Constraints(elements=(3, 8, 25)), store, range(5))
    sample_watched(SAMPLERS["predictor_corrector.v1"], bound, store.batch(range(5)), device)


LOOKS: Mapping[str, Callable[[Tensor], object]] = {
    "item": lambda s: s[0].item(),
    "branch": lambda s: 1 if (s > 0).all() else 0,
    "list": lambda s: s.tolist(),
    "equal": lambda s: torch.equal(s, s),
    "mask": lambda s: s[s > 0.5],
    "mask to write": lambda s: s.clone().masked_scatter_(s > 0.5, s[s > 0.5]),
    "mask to fill": lambda s: s.clone().__setitem__(s > 0.5, 1.0),
    "nonzero": lambda s: s.nonzero(),
    "unique": lambda s: torch.unique(s),
    "masked_select": lambda s: s.masked_select(s > 0.5),
    "repeats of unknown length": lambda s: s.repeat_interleave(s.long()),
}
COPIES: Mapping[str, Callable[[Tensor], object]] = {
    "list to tensor": lambda s: torch.tensor([1.0, 2.0], device=s.device),
    "list like a tensor": lambda s: s.new_tensor([1.0, 2.0]),
    "list as index": lambda s: s[[0]],
    "host's tensor": lambda s: torch.arange(3).to(s.device),
    "host's number": lambda s: torch.tensor(1.0).to(s.device),
    "host's tensor into another": lambda s: s.clone().copy_(torch.zeros(5)),
    "host's index": lambda s: s[torch.tensor([0, 1])],
    "to the host": lambda s: s.cpu(),
}


@attrs.frozen
class Faulty:
    """A model that does something else in every call."""

    model: GenerativeModel
    fault: Callable[[Tensor], object]

    @property
    def processes(self) -> Mapping[str, DiffusionProcess]:
        return self.model.processes

    def predict(self, latents: Mapping[str, Latent], s: Tensor, layout: Layout) -> Mapping[str, Prediction]:
        self.fault(s)
        return self.model.predict(latents, s, layout)


@pytest.mark.parametrize("fault", [*LOOKS.values(), *COPIES.values()], ids=[*LOOKS, *COPIES])
def test_the_watch_sees_a_planted_fault(fault: Callable[[Tensor], object]) -> None:
    """torch itself refuses some of them, as the tensors have no values."""
    model, given = model_on(META, "kldm_eps_em_mp20"), STORE.batch(range(5)).to(META)
    with ExitStack() as stack:
        watching = Watched(Faulty(model, fault), META, stack)
        with pytest.raises(RuntimeError):
            EulerMaruyama(steps=2).sample(watching, given, generator(META))
    assert watching.calls == 1


@pytest.mark.parametrize("fault", COPIES.values(), ids=COPIES)
def test_nothing_but_the_watch_minds_a_copy(fault: Callable[[Tensor], object]) -> None:
    s = torch.rand(5, device=META)
    if fault is not COPIES["to the host"]:
        fault(s)
    with watched(), pytest.raises(RuntimeError):
        fault(s)


def test_the_watch_lets_pass_what_does_not_wait() -> None:
    s = torch.rand(5, device=META)
    with watched():
        found = s * torch.tensor(2.0) + torch.arange(5, device=META) + torch.zeros_like(s).to(torch.float64)
        torch.where(s > 0.5, 0.0, found)[1:, None]
        s.repeat_interleave(s.long(), output_size=7)
        assert torch.arange(3).sum() == 3  # a number of the host's
        s.clone()[torch.zeros(2, dtype=torch.long, device=META)] = 1.0
