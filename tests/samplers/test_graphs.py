"""Replayed steps are plain steps: the same numbers from the same generator, or a warning and plain steps."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest
import torch
from torch import Tensor

import kldm.samplers.graphs
from kldm.crystals import Crystals, Layout
from kldm.errors import KldmError
from kldm.interfaces import DiffusionProcess, GenerativeModel, Latent, Prediction, Sampler
from kldm.model import JointModel
from kldm.networks import CSPNet, CSPVNet
from kldm.processes import (
    Absorbing,
    Cosine,
    EuclideanFlow,
    Given,
    LogTan,
    Matrix,
    TorusFlow,
    TrivializedTorus,
    VPEuclidean,
    WrappedVE,
    analog_bits,
    bits_flow,
    com_free_ve,
    one_hot,
)
from kldm.registry import samplers
from kldm.samplers import EulerMaruyama, PredictorCorrector, X0Flow, replaying
from kldm.samplers.graphs import Recording, capture
from kldm.sampling.constraints import Constraints, constrained
from tests.oracles import random_crystals
from tests.samplers.tape import record
from tests.small import NETWORK, needs_gpu, random_store

STEPS = 5
CELL = VPEuclidean(codec=LogTan(standardise=False))
DDPM = VPEuclidean(codec=Matrix(), schedule=Cosine(), parameterization="eps")
STRAIGHT = EuclideanFlow(codec=LogTan(standardise=False))
MODELS: Mapping[str, tuple[type[CSPVNet | CSPNet], DiffusionProcess, DiffusionProcess, DiffusionProcess]] = {
    "kldm": (CSPVNet, TrivializedTorus(), CELL, Given()),
    "kldm direct": (CSPVNet, TrivializedTorus(parameterization="direct", initial_velocity_std=0.5), CELL, Given()),
    "kldm one-hot": (CSPVNet, TrivializedTorus(), CELL, one_hot()),
    "kldm bits": (CSPVNet, TrivializedTorus(), CELL, analog_bits()),
    "kldm absorbing": (CSPVNet, TrivializedTorus(), CELL, Absorbing(remask=True)),
    "diffcsp": (CSPNet, WrappedVE(), DDPM, Given()),
    "equicsp": (CSPNet, com_free_ve(), DDPM, one_hot(parameterization="eps")),
    "flowmm": (CSPNet, TorusFlow(), STRAIGHT, bits_flow()),
}
SAMPLERS: Mapping[str, Sampler] = {
    **{
        name: samplers.get(name)(steps=STEPS)
        for name in samplers.names()
        if samplers.get(name).__module__.startswith("kldm.")
    },
    "exponential": EulerMaruyama(steps=STEPS, euclidean="exponential"),
    "predict_then_correct": PredictorCorrector(steps=STEPS, order="predict_then_correct"),
    "x0_flow, stochastic": X0Flow(steps=STEPS, stochastic=True, over={"coordinates": 2.0}),
    "landing": EulerMaruyama(steps=STEPS, land=True),
}
GIVEN = random_crystals((4, 1, 2, 7, 1), seed=0, dtype=torch.float32)

each_sampler = pytest.mark.parametrize("name", SAMPLERS)
each_model = pytest.mark.parametrize("family", MODELS)


def model(family: str) -> JointModel:
    network, coordinates, lattice, species = MODELS[family]
    torch.manual_seed(0)
    return JointModel(
        coordinates=coordinates, lattice=lattice, species=species, network=partial(network, **NETWORK)
    ).eval()


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tape in place of CUDA graphs; the list has an entry for every recording."""
    made: list[int] = []

    def recording(run: Callable[[], None], rng: torch.Generator) -> Callable[[], None]:
        made.append(1)
        return record(run, rng)

    monkeypatch.setattr(kldm.samplers.graphs, "recorder", lambda device: recording)
    return made


def sampled(
    sampler: Sampler, built: GenerativeModel, graphs: bool, given: Crystals = GIVEN, device: str = "cpu"
) -> tuple[Crystals, Tensor]:
    """The sample, and what the generator draws next."""
    rng = torch.Generator(device).manual_seed(3)
    with replaying(graphs):
        found = sampler.sample(built, given, rng)
    return found, torch.rand(4, generator=rng, device=device)


def compatible(name: str, processes: Mapping[str, DiffusionProcess]) -> Sampler:
    try:
        SAMPLERS[name].check(processes)
    except KldmError:
        pytest.skip("not a sampler for these processes")
    return SAMPLERS[name]


def assert_same(one: tuple[Crystals, Tensor], other: tuple[Crystals, Tensor]) -> None:
    (found, after), (expected, expected_after) = one, other
    assert torch.equal(found.fractional, expected.fractional)
    assert torch.equal(found.lattice, expected.lattice)
    assert torch.equal(found.species, expected.species)
    assert torch.equal(after, expected_after)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.name == "kldm.samplers"]


@each_model
@each_sampler
def test_replayed_steps_are_the_plain_ones(name: str, family: str, taped: list[int]) -> None:
    built = model(family)
    sampler = compatible(name, built.processes)
    replayed = sampled(sampler, built, graphs=True)
    assert len(taped) == 1
    assert_same(replayed, sampled(sampler, built, graphs=False))
    assert len(taped) == 1


@pytest.mark.parametrize("name", ["euler_maruyama.v1", "predictor_corrector.v1"])
def test_known_parts_are_held_in_replayed_steps(name: str, taped: list[int]) -> None:
    store = random_store((4, 1, 2))
    known = torch.arange(7) % 2 == 0
    rules = Constraints(elements=(3, 8), positions=known, species=known, cell=torch.tensor([True, False, True]))
    built = constrained(model("kldm absorbing"), rules, store, range(3))
    given = store.batch(range(3))
    assert_same(*(sampled(SAMPLERS[name], built, graphs, given) for graphs in (True, False)))
    assert taped


def test_every_batch_is_recorded_for_itself(taped: list[int]) -> None:
    built = model("kldm")
    for sizes in ((3, 2), (1,), (2, 2, 2)):
        given = random_crystals(sizes, seed=1, dtype=torch.float32)
        assert_same(*(sampled(EulerMaruyama(steps=4), built, graphs, given) for graphs in (True, False)))
    assert len(taped) == 3


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps(steps: int, taped: list[int]) -> None:
    """The first one is plain."""
    assert_same(*(sampled(PredictorCorrector(steps=steps), model("kldm"), graphs) for graphs in (True, False)))
    assert len(taped) == steps - 1


def test_progress_is_told_of_every_step(taped: list[int]) -> None:
    seen: list[int] = []
    with replaying():
        EulerMaruyama(steps=4).sample(model("kldm"), GIVEN, torch.Generator().manual_seed(0), seen.append)
    assert seen == [1] * 4


def test_a_recording_keeps_its_autocast_casts_to_itself(taped: list[int]) -> None:
    caches: list[bool] = []
    built = Doing(model("kldm"), lambda s: caches.append(torch.is_autocast_cache_enabled()))
    with torch.autocast("cpu", torch.bfloat16):
        sampled(EulerMaruyama(steps=3), built, graphs=True)
    assert caches == [True, False, False]
    assert torch.is_autocast_cache_enabled()


def test_a_recording_without_autocast_leaves_what_compilers_look_at(taped: list[int]) -> None:
    caches: list[bool] = []
    built = Doing(model("kldm"), lambda s: caches.append(torch.is_autocast_cache_enabled()))
    sampled(EulerMaruyama(steps=3), built, graphs=True)
    assert caches == [True] * 3


def test_nothing_is_replayed_where_there_is_no_gpu() -> None:
    calls: list[float] = []
    built = Doing(model("kldm"), lambda s: calls.append(float(s[0])))
    assert_same(*(sampled(EulerMaruyama(steps=4), built, graphs) for graphs in (True, False)))
    assert calls == [1.0, 0.75, 0.5, 0.25] * 2


@attrs.frozen
class Doing:
    """A model that does something else in every call."""

    inner: GenerativeModel
    task: Callable[[Tensor], object]

    @property
    def processes(self) -> Mapping[str, DiffusionProcess]:
        return self.inner.processes

    def predict(self, latents: Mapping[str, Latent], s: Tensor, layout: Layout) -> Mapping[str, Prediction]:
        self.task(s)
        return self.inner.predict(latents, s, layout)


def test_what_cannot_be_recorded_is_done_plainly_with_one_warning(
    taped: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    built = Doing(model("kldm absorbing"), lambda s: float(s[0]))
    with caplog.at_level(logging.WARNING), replaying():
        rng = torch.Generator().manual_seed(3)
        first = PredictorCorrector(steps=4).sample(built, GIVEN, rng), torch.rand(4, generator=rng)
        rng = torch.Generator().manual_seed(3)
        second = PredictorCorrector(steps=4).sample(built, GIVEN, rng), torch.rand(4, generator=rng)
    plain = sampled(PredictorCorrector(steps=4), built, graphs=False)
    assert_same(first, plain)
    assert_same(second, plain)
    assert len(taped) == 1
    assert warnings(caplog) == [
        "steps are made one by one, as they cannot be replayed as a CUDA graph: "
        "operation not permitted while it is recorded"
    ]
    assert torch.is_autocast_cache_enabled()


def test_an_error_of_the_step_itself_is_no_warning(taped: list[int], caplog: pytest.LogCaptureFixture) -> None:
    def fail(s: Tensor) -> None:
        raise KldmError("broken")

    with pytest.raises(KldmError, match="broken"):
        sampled(EulerMaruyama(steps=3), Doing(model("kldm"), fail), graphs=True)
    assert not warnings(caplog)
    assert not taped


LATENTS: dict[str, Latent] = {"a": {"x": torch.arange(6.0).reshape(3, 2)}, "b": {"y": torch.ones(3, 2)}}
TIME = torch.tensor(1.0)


def made(step: Any) -> Recording:
    return Recording(step, LATENTS, TIME, TIME, torch.Generator().manual_seed(0), record)


@pytest.mark.parametrize(
    ("step", "differs"),
    [
        (lambda latents, *_: {**latents, "a": {"x": latents["a"]["x"][:, :1]}}, "a.x"),
        (lambda latents, *_: {**latents, "b": {"y": latents["b"]["y"].double()}}, "b.y"),
        (lambda latents, *_: {**latents, "b": {}}, "b.y"),
        (lambda latents, *_: {**latents, "c": {"z": latents["b"]["y"]}}, "c.z"),
    ],
    ids=["shape", "type", "missing", "new"],
)
def test_a_step_that_changes_shapes_is_not_recorded(step: Any, differs: str) -> None:
    with pytest.raises(ValueError, match=rf"changes the shape or the type of {differs}$"):
        made(step)


def test_a_step_may_exchange_its_latents_and_give_views_of_them() -> None:
    """Buffers are written after all of them have been read."""

    def exchange(latents: Any, start: Tensor, end: Tensor, rng: torch.Generator) -> Any:
        return {"a": {"x": latents["b"]["y"]}, "b": {"y": latents["a"]["x"].flip(0).view(3, 2)}}

    def shifted(latents: Any, start: Tensor, end: Tensor, rng: torch.Generator) -> Any:
        whole = latents["a"]["x"]
        return {**latents, "a": {"x": torch.stack([whole[1], whole[2], whole[0]])}, "b": {"y": whole.t().t()}}

    for step in (exchange, shifted):
        recording, expected, found = made(step), LATENTS, LATENTS
        for _ in range(3):
            expected = step(expected, TIME, TIME, recording.rng)
            found = dict(recording(found, TIME, TIME))
            assert torch.equal(found["a"]["x"], expected["a"]["x"])
            assert torch.equal(found["b"]["y"], expected["b"]["y"])
    assert torch.equal(LATENTS["a"]["x"], torch.arange(6.0).reshape(3, 2))


def test_times_and_draws_are_those_of_the_call() -> None:
    def step(latents: Any, start: Tensor, end: Tensor, rng: torch.Generator) -> Any:
        x = latents["a"]["x"]
        return {**latents, "a": {"x": x + start - end + torch.randn(x.shape, generator=rng)}}

    recording, rng = made(step), torch.Generator().manual_seed(0)
    plain = replayed = LATENTS
    for start in (1.0, 0.75, 0.25):
        times = torch.tensor(start), torch.tensor(start / 2)
        plain = step(plain, *times, rng)
        replayed = dict(recording(replayed, *times))
        assert torch.equal(replayed["a"]["x"], plain["a"]["x"])


class Cuda:
    """What stands for ``torch.cuda`` with two GPUs; the list says what is done, and on which of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[str, int]] = []
        self._current = 0
        graph = SimpleNamespace(register_generator_state=self._says("register"), replay=self._says("replay"))
        given: dict[str, Any] = {
            "device": self._device,
            "stream": nullcontext,
            "Stream": lambda device: SimpleNamespace(wait_stream=lambda other: None),
            "current_stream": lambda device: SimpleNamespace(wait_stream=lambda other: None),
            "current_device": lambda: self._current,
            "default_generators": (torch.Generator(), torch.Generator()),
            "CUDAGraph": lambda: graph,
            "graph": lambda *_, **__: nullcontext(),
        }
        for name, value in given.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def run(self) -> None:
        self.done.append(("run", self._current))

    def _says(self, what: str) -> Callable[..., None]:
        return lambda *_: self.done.append((what, self._current))

    @contextmanager
    def _device(self, device: torch.device) -> Iterator[None]:
        before, self._current = self._current, self._current if device.index is None else device.index
        yield
        self._current = before


@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_capture_is_made_on_the_device_of_its_generator(
    device: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of a registered generator is taken on the current device; a device may go without its number."""
    cuda = Cuda(monkeypatch)
    kldm.samplers.graphs._side_stream.cache_clear()
    capture(cuda.run, cast(torch.Generator, SimpleNamespace(device=torch.device(device))))
    kldm.samplers.graphs._side_stream.cache_clear()
    assert cuda.done == [("register", number), ("run", number), ("run", number)]


def on_gpu(family: str) -> tuple[JointModel, Crystals]:
    return model(family).to("cuda"), GIVEN.to("cuda")


def assert_close(one: tuple[Crystals, Tensor], other: tuple[Crystals, Tensor]) -> None:
    """To rounding: on a GPU sums may be taken in another order."""
    (found, after), (expected, expected_after) = one, other
    offset = found.fractional - expected.fractional
    assert (offset - offset.round()).abs().max() < 1e-3
    torch.testing.assert_close(found.lattice, expected.lattice, rtol=1e-3, atol=1e-3)
    assert torch.equal(found.species, expected.species)
    assert torch.equal(after, expected_after)


@needs_gpu
@each_model
@each_sampler
def test_a_cuda_graph_gives_the_plain_steps(name: str, family: str, caplog: pytest.LogCaptureFixture) -> None:
    built, given = on_gpu(family)
    sampler = compatible(name, built.processes)
    calls: list[int] = []
    counted = Doing(built, lambda s: calls.append(1))
    plain = sampled(sampler, counted, False, given, "cuda")
    each = len(calls) // STEPS
    replayed = sampled(sampler, counted, True, given, "cuda")
    assert len(calls) == each * (STEPS + 3)  # plainly, to warm up, and captured
    assert_close(replayed, plain)
    assert not warnings(caplog)


@needs_gpu
def test_a_cuda_graph_under_autocast() -> None:
    built, given = on_gpu("kldm")
    built.precision = "bf16"
    assert_close(*(sampled(PredictorCorrector(steps=STEPS), built, graphs, given, "cuda") for graphs in (True, False)))


@needs_gpu
def test_a_failed_capture_falls_back_and_leaves_the_gpu_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    built, given = on_gpu("kldm absorbing")
    looking = Doing(built, lambda s: float(s[0]))
    stream = torch.cuda.current_stream()
    torch.cuda.manual_seed(5)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(5)
    assert_close(*(sampled(PredictorCorrector(steps=4), looking, graphs, given, "cuda") for graphs in (True, False)))
    assert len(warnings(caplog)) == 1
    assert torch.equal(torch.rand(3, device="cuda"), expected)
    assert torch.cuda.current_stream() == stream
    # The next capture is none the worse for it.
    assert_close(*(sampled(PredictorCorrector(steps=4), built, graphs, given, "cuda") for graphs in (True, False)))
    assert len(warnings(caplog)) == 1
