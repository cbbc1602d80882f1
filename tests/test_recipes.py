"""The recipes that come with kldm: all of them assemble, and the paper's are the paper's."""

from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from kldm.experiment import assemble
from kldm.recipe import read_recipe
from tests.small import OVERRIDES, RECIPES

ALL = sorted(path for path in RECIPES.rglob("*.cfg") if path.parent.name != "parts")
PAPER = [
    f"kldm_{parameterization}_{sampler}_{data}"
    for parameterization in ("eps", "x0")
    for sampler in ("em", "pc")
    for data in ("perov5", "carbon24", "mp20", "mpts52")
]
DATA = {"perov5": "perov_5", "carbon24": "carbon_24", "mp20": "mp_20", "mpts52": "mpts_52"}
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {  # the recipe each one changes, and what it changes
    "tdm_translating_mp20": ("kldm_eps_em_mp20", {"zero_net_translation": False}),
    **{
        f"tdm_direct_{case}": (f"kldm_eps_{case}", {"parameterization": "direct"})
        for case in ("em_mp20", "pc_mp20", "em_mpts52", "pc_mpts52")
    },
    **{
        f"tdm_velocity_variance_{variance}{suffix}_mp20": (
            "kldm_eps_em_mp20",
            {"parameterization": "direct", "initial_velocity_std": sqrt(variance), **change},
        )
        for variance in (0.1, 0.5, 1.0)
        for suffix, change in (("", {}), ("_translating", {"zero_net_translation": False}))
    },
}
SAMPLERS = {"em": "euler_maruyama.v1", "pc": "predictor_corrector.v1"}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.relative_to(RECIPES).with_suffix("").as_posix())
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


def test_the_ablations_are_all_there() -> None:
    assert set(ABLATIONS) == {path.stem for path in ALL if path.parent.name == "ablations"}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_nothing_else(name: str) -> None:
    base, changes = ABLATIONS[name]
    _, expected = assemble(read_recipe(RECIPES / f"{base}.cfg", OVERRIDES))
    _, found = assemble(read_recipe(RECIPES / "ablations" / f"{name}.cfg", OVERRIDES))
    assert expected["model"]["coordinates"] | changes != expected["model"]["coordinates"]
    expected["model"]["coordinates"] |= changes
    assert found == expected


@pytest.mark.parametrize(
    ("name", "process", "weight"),
    [
        ("kldm_x0_onehot_mp20_dng", "one_hot.v1", 20.0),
        ("kldm_x0_bits_mp20_dng", "analog_bits.v1", 1.0),
        ("kldm_x0_absorbing_mp20_dng", "absorbing.v1", 0.33),
        ("kldm_eps_onehot_perov5_dng", "one_hot.v1", 20.0),
        ("kldm_eps_onehot_carbon24_dng", "one_hot.v1", 20.0),
        ("kldm_eps_onehot_mp20_dng", "one_hot.v1", 20.0),
        ("diffcsp_mp20_dng", "one_hot.v1", 20.0),
    ],
)
def test_the_paper_s_settings_of_de_novo_generation(name: str, process: str, weight: float) -> None:
    experiment, tree = assemble(read_recipe(RECIPES / f"{name}.cfg", OVERRIDES))
    model = tree["model"]
    assert model["species"]["@processes"] == process
    assert model["weights"] == {"coordinates": 1.0, "lattice": 1.0, "species": weight}
    assert (experiment.evaluation.count, experiment.evaluation.atoms) == (10_000, "empirical")
    assert experiment.validation is not None
    assert experiment.validation.score == "valid"
    if name.startswith("kldm_eps"):
        assert model["species"]["parameterization"] == model["lattice"]["parameterization"] == "eps"
