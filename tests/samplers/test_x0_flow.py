"""Steps that hold the estimate: exact at once for a known crystal, moves of every process, third parties' too."""

from collections.abc import Mapping

import attrs
import pytest
import torch
from torch import Tensor

from kldm.crystals import Crystals, CrystalStore, Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, DiffusionProcess, Latent, Noised, Prediction, Step
from kldm.processes import (
    Absorbing,
    EuclideanFlow,
    Given,
    LogTan,
    TrivializedTorus,
    VPEuclidean,
    WrappedVE,
    analog_bits,
    com_free_ve,
    one_hot,
)
from kldm.samplers import EulerMaruyama, PredictorCorrector, X0Flow
from kldm.samplers.x0_flow import noised_anew
from kldm.sampling.constraints import ConditionedProcess, Constraints, constrained
from tests.oracles import Oracle, random_crystals, translation_free_rms
from tests.samplers.test_stages import Bare

LATTICE = VPEuclidean(codec=LogTan(standardise=False))
MODELS: Mapping[str, Mapping[str, DiffusionProcess]] = {
    "kldm": {"coordinates": TrivializedTorus(), "lattice": LATTICE, "species": Given()},
    "shown y": {
        "coordinates": TrivializedTorus(shows="displacement_free", displacement_noise="free", horizon=3.0),
        "lattice": LATTICE,
        "species": Given(),
    },
    "direct": {
        "coordinates": TrivializedTorus(parameterization="direct"),
        "lattice": LATTICE,
        "species": Given(),
    },
    "absorbing": {"coordinates": TrivializedTorus(), "lattice": LATTICE, "species": Absorbing()},
    "one-hot": {"coordinates": TrivializedTorus(), "lattice": LATTICE, "species": one_hot()},
    "bits": {"coordinates": TrivializedTorus(), "lattice": LATTICE, "species": analog_bits()},
    "diffcsp": {"coordinates": WrappedVE(), "lattice": LATTICE, "species": Given()},
    "equicsp": {"coordinates": com_free_ve(), "lattice": LATTICE, "species": Given()},
}


def sample(sampler: X0Flow, processes: Mapping[str, DiffusionProcess], truth: Crystals) -> Crystals:
    sampler.check(processes)
    return sampler.sample(Oracle(processes, (truth,)), truth, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("over", [{}, {"coordinates": 4.0, "lattice": 1.0}])
@pytest.mark.parametrize("name", MODELS)
def test_a_known_crystal_is_reached_in_four_calls(name: str, over: Mapping[str, float], stochastic: bool) -> None:
    """Whatever the noise, the last step ends at the estimate."""
    truth = random_crystals((8, 1, 5), 1)
    samples = sample(X0Flow(steps=4, over=over, stochastic=stochastic), MODELS[name], truth)
    assert torch.equal(samples.species, truth.species)
    torch.testing.assert_close(samples.lattice, truth.lattice, rtol=1e-9, atol=0.0)
    assert translation_free_rms(samples.fractional, truth.fractional, truth.layout).max() < 1e-6


@attrs.frozen(kw_only=True, eq=False)
class Watched(TrivializedTorus):
    """A process that notes the ends of its steps."""

    ends: list[float] = attrs.field(factory=list)

    def flow_given(self, latent: Latent, clean: Latent, step: Step) -> Latent:
        self.ends.append(float(step.r[0]))
        return super().flow_given(latent, clean, step)


def test_over_goes_beyond_the_clock_for_its_own_modality() -> None:
    truth = random_crystals((3,), 1)
    watched = Watched()
    processes: dict[str, DiffusionProcess] = {**MODELS["kldm"], "coordinates": watched}
    oracle = Oracle(MODELS["kldm"], (truth,))
    times: list[float] = []

    class Model:
        def __init__(self) -> None:
            self.processes = processes

        def predict(self, latents: Mapping[str, Latent], s: Tensor, layout: Layout) -> Mapping[str, Prediction]:
            times.append(float(s[0]))
            return oracle.predict(latents, s, layout)

    X0Flow(steps=4, over={"coordinates": 2.0}).sample(Model(), truth, torch.Generator().manual_seed(0))
    assert times == [1.0, 0.75, 0.5, 0.25]
    expected = [r * (r / s) ** 2 for s, r in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0))]
    assert watched.ends == pytest.approx(expected)


class EstimateAlone(Bare):
    """A third party's process: what every process has, and an estimate."""

    inner = EuclideanFlow(codec=LogTan(standardise=False), parameterization="x0")

    @property
    def reads(self) -> tuple[Channel, ...]:
        return self.inner.reads

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        return self.inner.noise(clean, s, rng)

    def decode(self, latent: Latent, into: Crystals) -> Crystals:
        return self.inner.decode(latent, into)

    def estimate(self, latent: Latent, prediction: Prediction, s: Tensor, layout: Layout) -> Latent:
        return {"lattice": prediction["lattice"]}


def test_a_process_with_an_estimate_alone_gets_it_noised_anew() -> None:
    truth = random_crystals((2, 3), 0)
    foreign = EstimateAlone()
    moves = X0Flow().stages({"lattice": foreign, "coordinates": Bare(), "species": Absorbing()})[0].moves
    assert moves == {"lattice": noised_anew, "coordinates": "denoise", "species": "denoise"}
    clean = foreign.inner.codec.encode(truth)
    prediction = {"lattice": clean}
    rng = torch.Generator().manual_seed(0)
    latent = foreign.inner.prior(truth, rng)
    s, r, zero = (torch.full((2,), value, dtype=torch.float64) for value in (0.9, 0.5, 0.0))
    samples = noised_anew(foreign, latent, prediction, Step(s, r, s, truth.layout, torch.Generator().manual_seed(1)))
    expected = foreign.noise(truth, r, torch.Generator().manual_seed(1)).latent
    torch.testing.assert_close(samples["lattice"], expected["lattice"])
    last = noised_anew(foreign, latent, prediction, Step(s, zero, s, truth.layout, rng))
    assert torch.equal(last["lattice"], clean)


def test_known_parts_are_held_and_the_rest_is_sampled() -> None:
    """A kept cell and kept atoms, through the steps of this sampler."""
    truth = random_crystals((4, 3), 2)
    store = CrystalStore(truth.fractional, truth.species, truth.lattice, (4, 3), ("a", "b"))
    positions = torch.tensor([True, True, False, False, True, False, False])
    rules = Constraints(positions=positions, cell=torch.tensor([True, False]))
    model = Oracle(MODELS["kldm"], (truth,))
    bound = constrained(model, rules, store, [0, 1])
    sampler = X0Flow(steps=5)
    assert sampler.stages(bound.processes)[0].moves["coordinates"] == "flow_given"
    samples = bound.restored(sampler.sample(bound, truth, torch.Generator().manual_seed(0)))
    assert torch.equal(samples.fractional[positions], truth.fractional[positions])
    assert torch.equal(samples.lattice[0], truth.lattice[0])
    assert torch.isfinite(samples.fractional).all()


def test_known_rows_are_held_where_the_estimate_is_noised_anew() -> None:
    truth = random_crystals((2, 3), 0)
    known = torch.tensor([True, False])
    process = ConditionedProcess(EstimateAlone(), truth, known)
    s, r = (torch.full((2,), value, dtype=torch.float64) for value in (0.9, 0.5))
    wrong = {"lattice": torch.full((2, 6), 1.0, dtype=torch.float64)}
    step = Step(s, r, s, truth.layout, torch.Generator().manual_seed(1))
    samples = noised_anew(process, {}, wrong, step)["lattice"]
    z = (samples - (1 - 0.5) * EstimateAlone.inner.codec.encode(truth)) / 0.5  # normal where the truth is held
    assert z[0].abs().max() < 5
    assert not torch.allclose(z[1], (samples[1] - 0.5 * wrong["lattice"][1]) / 0.5)


def test_a_misspelt_modality_or_value_is_refused() -> None:
    with pytest.raises(KldmError, match=r"sampler.over.coordinate: no such modality; did you mean 'coordinates'"):
        X0Flow(over={"coordinate": 2.0}).check(MODELS["kldm"])
    with pytest.raises(KldmError, match=r"over.lattice: must be from 0"):
        X0Flow(over={"lattice": -1.0})
    with pytest.raises(KldmError, match="steps"):
        X0Flow(steps=0)


def test_landing_takes_the_last_noise_away() -> None:
    """KLDM's Euler-Maruyama leaves 0.012 rad on every coordinate at 50 steps."""
    truth = random_crystals((8,) * 20, 1)
    oracle = Oracle(MODELS["kldm"], (truth,))
    left = []
    for land in (False, True):
        samples = EulerMaruyama(steps=50, land=land).sample(oracle, truth, torch.Generator().manual_seed(0))
        left.append(float(translation_free_rms(samples.fractional, truth.fractional, truth.layout).median()))
    assert left[0] > 1e-3
    assert left[1] < 1e-6


@pytest.mark.parametrize("order", ["correct_then_predict", "predict_then_correct"])
def test_landing_leaves_corrections_as_they_are(order: str) -> None:
    truth = random_crystals((8,) * 4, 1)
    sampler = PredictorCorrector(steps=20, order=order, land=True)  # type: ignore[arg-type]
    samples = sampler.sample(Oracle(MODELS["kldm"], (truth,)), truth, torch.Generator().manual_seed(0))
    assert translation_free_rms(samples.fractional, truth.fractional, truth.layout).max() < 1e-6
