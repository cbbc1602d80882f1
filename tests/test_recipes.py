"""The recipes that come with kldm: all of them assemble, and the paper's are the paper's."""

from pathlib import Path

import pytest

from kldm.experiment import assemble
from kldm.recipe import read_recipe
from tests.small import OVERRIDES, RECIPES

ALL = sorted(RECIPES.glob("*.cfg"))
PAPER = [
    f"kldm_{parameterization}_{sampler}_{data}"
    for parameterization in ("eps", "x0")
    for sampler in ("em", "pc")
    for data in ("perov5", "carbon24", "mp20", "mpts52")
]
DATA = {"perov5": "perov_5", "carbon24": "carbon_24", "mp20": "mp_20", "mpts52": "mpts_52"}
SAMPLERS = {"em": "euler_maruyama.v1", "pc": "predictor_corrector.v1"}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_assembles(path: Path) -> None:
    experiment, tree = assemble(read_recipe(path, OVERRIDES))
    assert experiment.metrics
    again, complete = assemble(tree)
    assert complete == tree
    assert again.sampler.steps == experiment.sampler.steps


def test_the_paper_s_recipes_are_all_there() -> None:
    assert set(PAPER) <= {path.stem for path in ALL}


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_settings(name: str) -> None:
    _, parameterization, sampler, data = name.split("_")
    own = read_recipe(RECIPES / f"{name}.cfg")["model"]["network"]
    experiment, tree = assemble(read_recipe(RECIPES / f"{name}.cfg", OVERRIDES))
    model, training, evaluation = tree["model"], experiment.training, experiment.evaluation
    assert tree["data"]["name"] == DATA[data]
    assert (own["hidden"], own["layers"]) == (512, 4 if data == "perov5" else 6)
    assert model["network"]["@networks"] == "cspvnet.v1"
    assert model["lattice"]["parameterization"] == parameterization
    assert model["lattice"]["codec"]["standardise"] is (parameterization == "x0")
    assert model["lattice"]["schedule"]["@schedules"] == "linear.v1"
    assert model["coordinates"]["parameterization"] == "simplified"
    assert (model["coordinates"]["horizon"], model["coordinates"]["initial_velocity_std"]) == (2.0, 0.0)
    assert model["species"]["@processes"] == "given.v1"
    assert model["weights"] == {"coordinates": 1.0, "lattice": 1.0}
    assert tree["sampler"]["@samplers"] == SAMPLERS[sampler]
    assert experiment.sampler.steps == 1000
    if sampler == "pc":
        assert tree["sampler"]["tau"] == 0.25
        assert tree["sampler"]["order"] == "correct_then_predict"
    assert training.batch_size == (1024 if data == "perov5" else 256)
    assert (training.epochs, training.learning_rate, training.ema_decay, training.ema_start) == (4000, 1e-3, 0.999, 500)
    assert (evaluation.splits, evaluation.limit, evaluation.candidates) == (("test",), None, 20)
    assert experiment.validation is not None
    assert experiment.validation.split == "val"
