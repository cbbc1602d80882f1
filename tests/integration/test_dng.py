"""De-novo generation as a whole: runs, what they leave, and that every modality is learnt."""

import json
from pathlib import Path

import pytest
import torch

from kldm.crystals import CrystalStore
from kldm.data import Data
from kldm.interfaces import DiffusionProcess
from kldm.model import JointModel
from kldm.processes import Absorbing, analog_bits, one_hot
from kldm.reading import read_samples
from kldm.recipe import read_recipe
from kldm.runs.experiment import assemble, fitted
from kldm.runs.run import evaluate_run
from kldm.runs.trained import load_run
from kldm.samplers import PredictorCorrector
from kldm.sampling.generation import candidates, generate, requests
from kldm.sampling.targets import de_novo, drawn_sizes
from kldm.training import Training, fit
from tests.small import BRIEF, RECIPES, kldm, options, real, refused, small_dng_model

SPECIES: list[DiffusionProcess] = [one_hot(), one_hot(parameterization="eps"), analog_bits(), Absorbing()]
RECIPES_DNG = sorted(path.stem for path in RECIPES.glob("kldm_*_dng.cfg"))


def test_a_run_generates_and_judges_as_many_as_asked_for(finished_dng: Path) -> None:
    report = json.loads((finished_dng / "report.json").read_text())
    assert set(report["evaluation"]) == {"train", "train_untrained"}
    for label, found in report["evaluation"].items():
        assert found["requests"] == 5
        samples = read_samples(finished_dng / "samples" / label / "samples.jsonl")
        assert [(candidate.target, candidate.candidate) for candidate in samples] == [
            (number, 0) for number in range(5)
        ]
        values = found["metrics"]["dng"]["values"]
        assert 0 <= values["valid"] <= values["struct_valid"] <= 1


def test_the_training_set_s_histogram_travels_with_the_model(finished_dng: Path) -> None:
    written = read_recipe(finished_dng / "recipe.cfg")["evaluation"]["histogram"]
    experiment, record, _ = load_run(finished_dng)
    train = experiment.data.load("train")
    assert written == {str(size): train.sizes.count(size) for size in sorted(set(train.sizes))}
    assert record.recipe["evaluation"]["histogram"] == written


def test_a_model_of_compositions_has_no_histogram(finished: Path) -> None:
    assert read_recipe(finished / "recipe.cfg")["evaluation"]["histogram"] is None


def test_samples_are_judged_again(finished_dng: Path, tmp_path: Path) -> None:
    again = evaluate_run(finished_dng, tmp_path)
    before = json.loads((finished_dng / "report.json").read_text())
    for label in ("train", "train_untrained"):
        assert again.as_json()["evaluation"][label]["metrics"] == before["evaluation"][label]["metrics"]
        table = (tmp_path / f"{label}.csv").read_text().splitlines()
        assert len(table) == 6
        assert table[1].split(",")[2] == "sample-0"


@pytest.mark.parametrize(("key", "value"), [("atoms", "4-"), ("atoms", 0), ("count", 0)])
def test_impossible_requests_are_refused_before_training(key: str, value: str | int, tmp_path: Path) -> None:
    told = refused("check", RECIPES / "quickstart_dng.cfg", *options({f"evaluation.{key}": value}))
    assert f"evaluation.{key}" in told or key in told


@pytest.mark.parametrize("species", SPECIES, ids=["one-hot x0", "one-hot eps", "bits", "absorbing"])
def test_a_thousand_requests_give_a_thousand_results(species: DiffusionProcess) -> None:
    """From random weights most are no crystals worth the name; none is lost, and none is none without a reason."""
    sizes = drawn_sizes("1-8", None, 1000, seed=3)
    wanted = requests(1000, 1)
    model = small_dng_model(species)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(30)  # absurd answers, up to cells that cannot be built
    generated = generate(model, PredictorCorrector(steps=2), de_novo(sizes).store, wanted, seed=0, max_pairs=20_000)
    made = candidates(generated, wanted)
    assert [candidate.target for candidate in made] == list(range(1000))
    for candidate, size in zip(made, sizes, strict=True):
        assert (candidate.structure is None) == bool(candidate.reason)
        assert candidate.structure is None or len(candidate.structure) == size
    assert generated.species.min() >= 1
    assert generated.species.max() <= 100


def measured(model: JointModel, train: CrystalStore) -> dict[str, float]:
    """Losses under the same noise every time, so that little of a difference is chance."""
    means: dict[str, float] = {}
    with torch.no_grad():
        for number in range(16):
            rng = torch.Generator().manual_seed(number)
            s = 1 - 0.999 * torch.rand(len(train), generator=rng)
            for name, loss in model.losses(train.batch(range(len(train))), s, rng).items():
                means[name] = means.get(name, 0.0) + loss.item() / 16
    return means


@pytest.mark.parametrize(
    "name", ["onehot", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bits", "absorbing"))]
)
def test_every_modality_is_learnt_on_mp_20(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = {"hidden": 64, "layers": 3, "frequencies": 16, "time_features": 32}
    data = str(real("mp_20", 100, tmp_path, monkeypatch))
    overrides: dict[str, str | int] = {
        "data.name": data,
        **{f"model.network.{key}": value for key, value in network.items()},
    }
    train = Data(name=data).load("train")
    experiment, _ = fitted(*assemble(read_recipe(RECIPES / f"kldm_x0_{name}_mp20_dng.cfg", overrides)), train)
    before = measured(experiment.model, train)
    settings = Training(epochs=100, batch_size=34, learning_rate=3e-3, ema_start=999, validate_every=0)
    fit(experiment.model, train, settings, tmp_path / "run", {})
    after = measured(experiment.model, train)
    assert after["lattice"] < 0.7 * before["lattice"]
    assert after["species"] < 0.7 * before["species"]
    assert after["coordinates"] < 0.995 * before["coordinates"]


@pytest.mark.parametrize("recipe", RECIPES_DNG)
def test_the_recipes_run_on_real_data(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = {"mp20": "mp_20", "perov5": "perov_5", "carbon24": "carbon_24"}[recipe.split("_")[3]]
    overrides = {
        "data.name": str(real(name, 30, tmp_path, monkeypatch)),
        **BRIEF,
        "evaluation.count": 4,
        "metrics.dng.workers": 1,
    }
    result = kldm("run", RECIPES / f"{recipe}.cfg", "--out", tmp_path / "run", "--device", "cpu", *options(overrides))
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["evaluation"]["test"]["requests"] == 4
    assert {"struct_valid", "cov_recall", "wdist_density"} <= set(
        report["evaluation"]["test"]["metrics"]["dng"]["values"]
    )
    assert report["training"]["best"] is not None
