"""A process of one's own: from a loose file through a recipe, and the same composition as plain Python."""

import json
from functools import partial
from pathlib import Path

import pytest

from kldm import JointModel, Training, fit
from kldm.data import Data
from kldm.data.convert import to_structures
from kldm.networks import CSPVNet
from kldm.processes import Given, LogTan, TrivializedTorus, VPEuclidean
from kldm.samplers import PredictorCorrector
from kldm.sampling.generation import generate, requests
from kldm.sampling.targets import compositions
from tests.small import NETWORK, QUICK, RECIPES, kldm, options, real, refused, rows

CODE = '''\
"""Coordinates on the torus by plain Brownian motion: no velocities, no base class."""

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from kldm import Channel, Crystals, Latent, Layout, Move, Noised, Prediction, Step, process


@process("brownian.v1")
@attrs.frozen(kw_only=True)
class Brownian:
    """x_s = x_0 + width s eps, wrapped; the network predicts eps.

    Args:
        width: standard deviation at s = 1, fractional units.
    """

    width: float = 0.5

    @property
    def reads(self) -> tuple[Channel, ...]:
        return (Channel("fractional", 3, "atom", "periodic"),)

    @property
    def predicts(self) -> tuple[Channel, ...]:
        return (Channel("noise", 3, "atom", "tangent"),)

    @property
    def moves(self) -> Mapping[str, Move]:
        return {"denoise": Move(self.denoise)}

    def prior(self, given: Crystals, rng: torch.Generator) -> Latent:
        shape = (given.layout.total, 3)
        return {"fractional": torch.rand(shape, generator=rng, device=given.device)}

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        eps = torch.randn(clean.fractional.shape, generator=rng, device=clean.device)
        moved = clean.fractional + self.width * clean.layout.per_atom(s).unsqueeze(-1) * eps
        return Noised({"fractional": moved % 1}, {"noise": eps})

    def loss(self, prediction: Prediction, noised: Noised, s: Tensor, layout: Layout) -> Tensor:
        return (prediction["noise"] - noised.target["noise"]).square().mean()

    def denoise(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        change = step.layout.per_atom(step.s - step.r).unsqueeze(-1) * self.width
        return {"fractional": (latent["fractional"] - change * prediction["noise"]) % 1}

    def decode(self, latent: Latent, into: Crystals) -> Crystals:
        return attrs.evolve(into, fractional=latent["fractional"] % 1)
'''

RECIPE = f"""\
[data]
name = "aflow_prototypes"

[model.coordinates]
@processes = "brownian.v1"
width = 0.4

[model.lattice]
@processes = "vp_euclidean.v1"

[model.lattice.codec]
@codecs = "log_tan.v1"

[model.species]
@processes = "given.v1"

[model.network]
@networks = "cspvnet.v1"
hidden = {NETWORK["hidden"]}
layers = {NETWORK["layers"]}
frequencies = {NETWORK["frequencies"]}
time_features = {NETWORK["time_features"]}

[sampler]
@samplers = "euler_maruyama.v1"
steps = 3

[training]
epochs = 2
batch_size = 64
validate_every = 0

[evaluation]
limit = 4

[metrics.csp]
@metrics = "match_rate.v1"
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("custom")
    code, recipe = folder / "brownian.py", folder / "brownian.cfg"
    code.write_text(CODE)
    recipe.write_text(RECIPE)
    return code, recipe


def test_without_its_code_the_process_is_unknown(files: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "unknown.cfg"
    recipe.write_text(RECIPE.replace("brownian.v1", "brownian.v2"))
    assert "model.coordinates: @processes holds no 'brownian.v2'" in refused("check", recipe)


def test_runs_from_a_recipe(files: tuple[Path, Path], tmp_path: Path) -> None:
    code, recipe = files
    folder = tmp_path / "run"
    result = kldm("run", recipe, "--code", code, "--out", folder, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "width = 0.4" in (folder / "recipe.cfg").read_text()
    assert json.loads((folder / "report.json").read_text())["evaluation"]["test"]["requests"] == 4
    out = tmp_path / "samples"
    result = kldm("sample", folder, "--formula", "NaCl", "--code", code, "--out", out, "--device", "cpu")
    assert result.exit_code == 0 or "all 1 structures failed: " in result.output, result.output
    assert (out / "samples.jsonl").is_file()
    assert "  brownian.v1: x_s = x_0 + width s eps" in kldm("components", "--code", code).output


def test_a_sampler_that_it_cannot_follow_is_refused_before_training(files: tuple[Path, Path], tmp_path: Path) -> None:
    code, recipe = files
    arguments: list[str | Path] = ["--sampler.@samplers", "probability_flow.v1", "--out", tmp_path / "run"]
    assert "model.coordinates" in refused("run", recipe, "--code", code, *arguments)
    assert not (tmp_path / "run").exists()


def test_the_same_composition_as_plain_python(tmp_path: Path) -> None:
    train = Data(name="aflow_prototypes").load("train")
    model = JointModel(
        coordinates=TrivializedTorus(),
        lattice=VPEuclidean(codec=LogTan().fitted(train), parameterization="x0"),
        species=Given(),
        network=partial(CSPVNet, **NETWORK),
    )
    fit(model, train, Training(epochs=2, batch_size=64, ema_start=1), tmp_path, {})
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2]
    wanted = requests(2, 2)
    targets = compositions([(11, 17), (22, 8, 8)], ["NaCl", "TiO2"])
    found = generate(model, PredictorCorrector(steps=20), targets, wanted, seed=0, max_pairs=64_000)
    assert [structure.formula for structure in to_structures(found)] == ["Na1 Cl1", "Ti1 O2"] * 2


@pytest.mark.parametrize(("name", "recipe"), [("perov_5", "kldm_x0_pc_perov5"), ("mp_20", "kldm_x0_pc_mp20")])
def test_the_paper_s_recipe_on_real_data(
    name: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = real(name, 40, tmp_path, monkeypatch)
    overrides = {
        **QUICK,
        "data.name": str(data),
        "evaluation.limit": 4,
        "evaluation.candidates": 2,
        "training.validate_every": 2,
        "validation.size": 3,
        "validation.sampler.steps": 3,
    }
    result = kldm("run", RECIPES / f"{recipe}.cfg", "--out", tmp_path / "run", "--device", "cpu", *options(overrides))
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    found = report["evaluation"]["test"]
    assert (report["training"]["crystals"], found["reference"]["rows"], found["requests"]) == (40, 4, 8)
    assert {"structural.match_rate@1", "structural.match_rate@2"} <= set(found["metrics"]["csp"]["values"])
