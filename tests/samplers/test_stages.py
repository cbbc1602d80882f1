"""The stage loop: which moves, at which times, with how many network calls, and what is refused."""

from collections.abc import Mapping

import attrs
import pytest
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, Correction, DiffusionProcess, Latent, Move, Noised, Prediction, Step
from kldm.processes import Given, LogTan, TrivializedTorus, VPEuclidean
from kldm.samplers import EulerMaruyama, PredictorCorrector, ProbabilityFlow, Stage, X0Flow, integrate
from kldm.samplers.stages import StagedSampler, time_grid
from kldm.sampling.constraints import ConditionedProcess
from tests.oracles import Oracle, random_crystals

FULL: Mapping[str, DiffusionProcess] = {
    "coordinates": TrivializedTorus(),
    "lattice": VPEuclidean(codec=LogTan(standardise=False)),
    "species": Given(),
}


@attrs.frozen
class Bare:
    """A process with the one move that every process has."""

    @property
    def moves(self) -> Mapping[str, Move]:
        return {"denoise": Move(lambda latent, prediction, step: latent)}

    @property
    def reads(self) -> tuple[Channel, ...]:
        return ()

    @property
    def predicts(self) -> tuple[Channel, ...]:
        return ()

    def prior(self, given: Crystals, rng: torch.Generator) -> Latent:
        return {}

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        return Noised({}, {})

    def loss(self, prediction: Prediction, noised: Noised, s: Tensor, layout: Layout) -> Tensor:
        return s.new_zeros(())

    def decode(self, latent: Latent, into: Crystals) -> Crystals:
        return into


@attrs.define
class Watching:
    """An oracle that remembers the times it was called at."""

    oracle: Oracle
    times: list[float] = attrs.field(factory=list)

    @property
    def processes(self) -> Mapping[str, DiffusionProcess]:
        return self.oracle.processes

    def predict(self, latents: Mapping[str, Latent], s: Tensor, layout: Layout) -> Mapping[str, Prediction]:
        self.times.append(round(float(s[0]), 6))
        return self.oracle.predict(latents, s, layout)


@pytest.mark.parametrize(
    ("sampler", "times"),
    [
        (EulerMaruyama(steps=2), [1.0, 0.5]),
        (ProbabilityFlow(steps=2, s_min=0.2), [1.0, 0.6]),
        (PredictorCorrector(steps=2), [1.0, 1.0, 0.5, 0.5]),
        (PredictorCorrector(steps=2, corrections=2), [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]),
        (PredictorCorrector(steps=2, order="predict_then_correct", s_min=0.1), [1.0, 0.55, 0.55, 0.1]),
        (PredictorCorrector(steps=2, order="predict_then_correct"), [1.0, 0.5, 0.5]),  # nothing to correct at 0
        (X0Flow(steps=2, rho=2.0), [1.0, 0.25]),
    ],
)
def test_network_calls(sampler: StagedSampler, times: list[float]) -> None:
    truth = random_crystals((3, 2), seed=0)
    watching = Watching(Oracle(FULL, (truth,)))
    seen: list[int] = []
    sampler.sample(watching, truth, torch.Generator().manual_seed(0), seen.append)
    assert watching.times == times
    assert sum(seen) == sampler.steps


def test_moves_of_each_sampler() -> None:
    assert EulerMaruyama().stages(FULL)[0].moves == dict.fromkeys(FULL, "denoise")
    exponential = EulerMaruyama(euclidean="exponential").stages(FULL)[0].moves
    assert (exponential["coordinates"], exponential["lattice"]) == ("denoise", "exponential")
    paper = PredictorCorrector(order="predict_then_correct").stages(FULL)
    assert [(stage.at, dict(stage.moves)) for stage in paper] == [
        ("start", {"coordinates": "predict", "lattice": "denoise", "species": "denoise"}),
        ("end", {"coordinates": "correct"}),
    ]
    authors = PredictorCorrector().stages(FULL)
    assert [stage.at for stage in authors] == ["start", "start"]
    assert authors[0].moves["lattice"] == "correct"
    assert authors[1].moves["lattice"] == "predict"


def test_a_process_without_the_move_is_refused_before_any_work() -> None:
    bare: Mapping[str, DiffusionProcess] = {**FULL, "coordinates": Bare()}
    with pytest.raises(KldmError, match=r"model.coordinates: Bare has no move 'flow'"):
        ProbabilityFlow().check(bare)
    with pytest.raises(KldmError, match="has no move 'predict'"):
        PredictorCorrector(order="predict_then_correct").check(bare)
    with pytest.raises(KldmError, match="charge"):
        PredictorCorrector(corrected=("charge",)).check(bare)
    PredictorCorrector().check(bare)
    assert PredictorCorrector().stages(bare)[1].moves["coordinates"] == "denoise"
    EulerMaruyama().check(bare)


@pytest.mark.parametrize("options", [{"steps": 0}, {"s_min": 1.0}, {"s_min": -0.1}])
def test_impossible_options(options: dict[str, float]) -> None:
    for kind in (EulerMaruyama, PredictorCorrector, ProbabilityFlow):
        with pytest.raises(KldmError, match=next(iter(options))):
            kind(**options)  # type: ignore[arg-type]
    with pytest.raises(KldmError, match="tau"):
        PredictorCorrector(tau=0.0)
    with pytest.raises(KldmError, match="order: must be one of correct_then_predict"):
        PredictorCorrector(order="backwards")  # type: ignore[arg-type]
    with pytest.raises(KldmError, match="euclidean: must be one of"):
        EulerMaruyama(euclidean="heun")  # type: ignore[arg-type]


def test_time_grid_is_uniform_and_ends_where_it_should() -> None:
    grid = time_grid(4, 0.2, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(grid, torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64))


def test_time_grid_of_unequal_steps() -> None:
    """Karras et al. (2022), Eq. 5."""
    grid = time_grid(4, 0.01, torch.zeros(1, dtype=torch.float64), rho=2.0)
    expected = [(1 + i / 4 * (0.1 - 1)) ** 2 for i in range(5)]
    torch.testing.assert_close(grid, torch.tensor(expected, dtype=torch.float64))
    with pytest.raises(KldmError, match="rho: must be above 0"):
        X0Flow(rho=0.0)


def test_a_misspelt_move_is_refused_and_a_function_is_a_move() -> None:
    truth = random_crystals((3,), seed=0)
    model, rng = Oracle(FULL, (truth,)), torch.Generator().manual_seed(0)
    times = time_grid(1, 0.0, truth.fractional)
    with pytest.raises(KldmError, match="has no move 'flowed', which the sampler needs; did you mean 'flow'"):
        integrate([Stage("start", {"coordinates": "flowed"})], times, model, truth, rng)
    bare = Oracle({**FULL, "coordinates": Bare()}, (truth,))
    with pytest.raises(KldmError, match="Bare has no move 'flow'"):
        integrate([Stage("start", {"coordinates": "flow"})], times, bare, truth, rng)

    def to_the_origin(process: DiffusionProcess, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        return {name: torch.zeros_like(value) for name, value in latent.items()}

    samples = integrate([Stage("start", {"coordinates": to_the_origin})], times, model, truth, rng)
    assert (samples.fractional == 0).all()


def test_the_last_step_leaves_out_corrections_at_its_end_and_nothing_else() -> None:
    @attrs.frozen(kw_only=True)
    class Twice(StagedSampler):
        def check(self, processes: Mapping[str, DiffusionProcess]) -> None: ...

        def stages(self, processes: Mapping[str, DiffusionProcess]) -> tuple[Stage, ...]:
            return tuple(Stage("end", {"coordinates": move}) for move in ("denoise", "correct"))

    truth = random_crystals((3,), seed=0)
    watching = Watching(Oracle(FULL, (truth,)))
    Twice(steps=2).sample(watching, truth, torch.Generator().manual_seed(0))
    assert watching.times == [0.5, 0.5, 0.0]


def test_same_seed_same_crystals() -> None:
    truth = random_crystals((3, 2), seed=0)
    for sampler in (EulerMaruyama(steps=5), PredictorCorrector(steps=5), ProbabilityFlow(steps=5)):
        runs = [
            sampler.sample(Oracle(FULL, (truth,)), truth, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        ]
        assert torch.equal(runs[0].fractional, runs[1].fractional)
        assert not torch.equal(runs[0].fractional, runs[2].fractional)


def test_a_move_of_a_new_name_needs_a_process_and_a_sampler_alone() -> None:
    """Whoever declares it: the loop makes it, known rows follow it, and the last step leaves it out at s = 0."""

    @attrs.frozen(kw_only=True, eq=False)
    class Leaping(VPEuclidean):
        @property
        def moves(self) -> Mapping[str, Move]:
            def leap(latent: Latent, prediction: Prediction, step: Step) -> Latent:
                return {"lattice": latent["lattice"] + step.correction.tau}

            return {**super().moves, "leap": Move(leap, ends="now")}

    @attrs.frozen(kw_only=True)
    class Leaps(StagedSampler):
        def stages(self, processes: Mapping[str, DiffusionProcess]) -> tuple[Stage, ...]:
            return (Stage("end", dict.fromkeys(("lattice", "species"), "leap"), correction=Correction(tau=3.0)),)

    raw = LogTan(standardise=False)
    processes = {**FULL, "lattice": Leaping(codec=raw)}
    truth = random_crystals((3, 2), seed=0)
    watching, rng = Watching(Oracle(processes, (truth,))), torch.Generator().manual_seed(0)
    start = processes["lattice"].prior(truth, torch.Generator().manual_seed(0))["lattice"]
    sampler = Leaps(steps=3)
    sampler.check(processes)
    with pytest.raises(KldmError, match=r"VPEuclidean has no move 'leap', .*; choose another sampler or process"):
        sampler.check(FULL)
    known = ConditionedProcess(processes["lattice"], truth, torch.tensor([True, False]))
    s, r = (torch.full((2,), time, dtype=torch.float64) for time in (0.5, 0.0))
    step = Step(s, r, s, truth.layout, rng)
    moved = known.moves["leap"]({"lattice": start}, {}, step)["lattice"]
    torch.testing.assert_close(moved[1], start[1] + 0.25)
    assert not torch.isclose(moved[0], start[0] + 0.25).any()
    assert not torch.isclose(moved[0], raw.encode(truth)[0]).any()  # still noisy: the move ends at now, not at r
    sampler.sample(watching, truth, rng)
    assert watching.times == [0.666667, 0.333333]


def test_a_stage_is_at_the_start_or_at_the_end() -> None:
    with pytest.raises(KldmError, match=r"^at: must be one of start, end, got 'strat'; did you mean 'start'\?$"):
        Stage("strat", {})  # type: ignore[arg-type]
