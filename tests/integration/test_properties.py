"""A property from a CSV through a recipe to the network, and asked for of the sampler."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from torch import Tensor

from kldm.crystals import Layout
from kldm.errors import KldmError
from kldm.interfaces import Latent
from kldm.model import JointModel
from kldm.recipe import read_recipe
from kldm.runs.experiment import assemble
from kldm.runs.request import SamplingRequest, property_values
from kldm.runs.splits import requested
from kldm.runs.trained import load_run
from tests.small import QUICK, RECIPES, kldm, options, refused

RECIPE = """
[recipe]
extends = "{quickstart}"

[data]
name = {data}

[model.conditions.formation]
@processes = "property.v1"
column = "formation_energy_per_atom"

[model.conditions.gap]
@processes = "property.v1"
column = "band_gap"

[evaluation]
splits = ["test"]
limit = null
"""
TRAIN = ["-1.5", "-0.5", "", "0.5"]
TEST = ["-0.25", ""]
MEAN, STD = -0.5, (2 / 3) ** 0.5


def write(path: Path, energies: list[str], column: str = "formation_energy_per_atom") -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["material_id", column, "band_gap", "cif"])
        for number, energy in enumerate(energies):
            salt = Structure(Lattice.cubic(4 + 0.1 * number), ["Na", "Cl"], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
            writer.writerow([f"own-{number}", energy, number, salt.to(fmt="cif")])


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLDM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("properties")
    for split, energies in (("train", TRAIN), ("val", TEST), ("test", TEST)):
        write(place / f"{split}.csv", energies)
    path = place / "conditional.cfg"
    path.write_text(RECIPE.format(quickstart=RECIPES / "quickstart.cfg", data=json.dumps(str(place))))
    return path


@pytest.fixture(scope="module")
def trained(recipe: Path) -> Path:
    folder = recipe.parent / "run"
    quick = {key: value for key, value in QUICK.items() if key != "evaluation.limit"}
    result = kldm("run", recipe, "--out", folder, "--device", "cpu", *options(quick))
    assert result.exit_code == 0, result.output
    return folder


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Latent]:
    """What the network of a model is shown from now on."""
    seen: list[Latent] = []
    predict = JointModel.predict

    def watching(self: JointModel, latents: dict[str, Latent], s: Tensor, layout: Layout) -> Any:
        seen.append({name: values for latent in latents.values() for name, values in latent.items()})
        return predict(self, latents, s, layout)

    monkeypatch.setattr(JointModel, "predict", watching)
    return seen


def test_the_column_reaches_the_network_and_its_statistics_the_recipe(trained: Path) -> None:
    experiment, record, _ = load_run(trained)
    assert experiment.data.columns == ("formation_energy_per_atom", "band_gap")
    fit = record.recipe["model"]["conditions"]["formation"]["fit"]
    assert fit == {"mean": pytest.approx(MEAN), "std": pytest.approx(STD)}
    train = experiment.data.load("train").batch(range(4))
    latents = experiment.model.noised(train, torch.full((4,), 0.5), torch.Generator().manual_seed(0)).draws
    channel = latents["formation"].latent["formation_energy_per_atom"]
    torch.testing.assert_close(channel, torch.tensor([[-1 / STD, 1], [0, 1], [0, 0], [1 / STD, 1]]))
    assert {"formation_energy_per_atom", "band_gap"} <= {channel.name for channel in experiment.model.interface.reads}


def test_a_run_of_the_same_recipe_goes_on(trained: Path, recipe: Path) -> None:
    quick = {**QUICK, "training.epochs": 3}
    del quick["evaluation.limit"]
    result = kldm("train", recipe, "--out", trained, "--device", "cpu", *options(quick))
    assert result.exit_code == 0, result.output


def test_a_split_is_sampled_with_its_own_values(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    result = kldm("sample", trained, "--split", "test", "--out", trained.parent / "split", "--device", "cpu")
    assert result.exit_code == 0, result.output
    expected = torch.tensor([[(-0.25 - MEAN) / STD, 1], [0, 0]])
    assert seen
    for latent in seen:
        torch.testing.assert_close(latent["formation_energy_per_atom"], expected)
        assert latent["band_gap"][:, 1].tolist() == [1, 1]


@pytest.mark.parametrize("value", ["-1.5", None])
def test_the_sampler_is_asked_for_a_value_or_for_none(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    seen = watched(monkeypatch)
    asked = ["--property", f"formation_energy_per_atom={value}"] if value else []
    result = kldm("sample", trained, "--formula", "NaCl", *asked, "--out", tmp_path / "s", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert seen
    for latent in seen:
        wanted = [[pytest.approx((-1.5 - MEAN) / STD), 1.0]] if value else [[0.0, 0.0]]
        assert latent["formation_energy_per_atom"].tolist() == wanted
        assert latent["band_gap"].tolist() == [[0.0, 0.0]]
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert report["request"].get("properties") == ({"formation_energy_per_atom": -1.5} if value else None)


def test_another_value_gives_another_sample(trained: Path) -> None:
    """From the same noise, by the whole road of a request."""
    experiment, _, _ = load_run(trained)
    for parameter in experiment.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))

    def sampled(**properties: float) -> Tensor:
        targets, _ = SamplingRequest(formulas=("NaCl",), properties=properties).targets(experiment)
        rng = torch.Generator().manual_seed(0)
        return experiment.sampler.sample(experiment.model, targets.store.batch([0]), rng).lattice

    low, high, unknown = sampled(formation_energy_per_atom=-1.5), sampled(formation_energy_per_atom=0.5), sampled()
    assert torch.equal(low, sampled(formation_energy_per_atom=-1.5))
    assert not torch.allclose(low, high)
    assert not torch.allclose(low, unknown)


def test_generated_compositions_are_asked_for_the_values_of_the_split(recipe: Path) -> None:
    species: dict[str, Any] = {"model.species.@processes": "absorbing.v1", "evaluation.atoms": 3}
    experiment, _ = assemble(read_recipe(recipe, {**QUICK, **species}))
    reference = experiment.data.load("test")
    targets = requested(experiment, reference, 5, seed=0)
    assert targets.sizes == (3,) * 5
    energies = targets.per_crystal["formation_energy_per_atom"].nan_to_num(9).tolist()
    assert energies == [-0.25, 9, -0.25, 9, -0.25]


def test_bad_requests_are_told_in_a_sentence(trained: Path, finished: Path, tmp_path: Path) -> None:
    def error(folder: Path, text: str) -> str:
        return refused("sample", folder, "--formula", "NaCl", "--property", text, "--out", tmp_path / "never")

    name = "formation_energy_per_atom"
    assert error(trained, "formation_energy=-1") == (
        f"--property: the model takes no property 'formation_energy'; did you mean '{name}'?"
    )
    assert error(trained, "zzz=-1").endswith(f"no property 'zzz'; it takes {name}, band_gap")
    assert error(finished, f"{name}=-1").endswith(f"no property '{name}'; it takes none")
    for text in (f"{name}=low", f"{name}=nan", f"{name}=inf", name, "=1", f"{name}="):
        assert error(trained, text).startswith(f"--property: wants NAME=VALUE with a number, got '{text}'")
    with pytest.raises(KldmError, match="--property: a is given twice"):
        property_values(["a=1", "a=2"])
    assert not (tmp_path / "never").exists()


def test_a_split_without_the_column_is_found_before_training(recipe: Path, tmp_path: Path) -> None:
    for split, column in (("train", "formation_energy_per_atom"), ("val", "x"), ("test", "formation_energy")):
        write(tmp_path / f"{split}.csv", TEST, column)
    told = refused("run", recipe, "--out", tmp_path / "run", "--device", "cpu", "--data.name", str(tmp_path))
    place = tmp_path / "test.csv"
    assert told == f"{place}: there is no column 'formation_energy_per_atom'; did you mean 'formation_energy'?"
    assert not (tmp_path / "run").exists()


def test_two_conditions_of_one_column_are_refused(recipe: Path) -> None:
    told = refused("check", recipe, "--model.conditions.gap.column", "formation_energy_per_atom")
    assert told == ("model.conditions.gap: another process already has the channel 'formation_energy_per_atom'")
