"""The recipes that come with kldm: all of them assemble, and the paper's are the paper's."""

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch

from kldm.evaluation.published import definitions
from kldm.recipe import read_recipe
from kldm.runs.experiment import assemble
from kldm.samplers import X0Flow
from tests.small import OVERRIDES, RECIPES, refused

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
PEERS: dict[str, tuple[int, int, float | None]] = {  # epochs, batch and step_lr of the authors' public code
    "diffcsp_perov5": (3000, 1024, 5e-7),
    "diffcsp_carbon24": (4000, 256, 5e-6),
    "diffcsp_mp20": (1000, 256, 1e-5),
    "diffcsp_mpts52": (500, 128, 1e-5),
    "diffcsp_perov5_dng": (3000, 1024, 1e-6),
    "diffcsp_carbon24_dng": (4000, 256, 1e-5),
    "diffcsp_mp20_dng": (1000, 256, 5e-6),
    "equicsp_perov5": (3000, 1024, 5e-7),
    "equicsp_carbon24": (4000, 512, 5e-6),
    "equicsp_mp20": (1000, 256, 5e-6),
    "equicsp_mpts52": (1000, 128, 1e-5),
    "equicsp_perov5_dng": (3000, 1024, 1e-6),
    "equicsp_carbon24_dng": (4000, 512, 1e-5),
    "equicsp_mp20_dng": (1000, 256, 5e-6),
    "flowmm_perov5": (6000, 1024, None),
    "flowmm_carbon24": (8000, 256, None),
    "flowmm_mp20": (2000, 256, None),
    "flowmm_mpts52": (1000, 64, None),
    "flowmm_mp20_dng": (2000, 256, None),
}
TABLE_2 = ("diffcsp", "kldm_x0_absorbing", "kldm_x0_bits", "kldm_x0_onehot")
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


SHOWN: list[tuple[str, dict[str, Any]]] = [
    ("state", {}),
    ("displacement_free", {"coordinates.shows": "displacement_free"}),
    ("displacement_free_log_noise", {"network.time_embedding": "log_noise"}),
    ("displacement_free_log_noise_free", {"coordinates.displacement_noise": "free", "coordinates.horizon": 3.0}),
]
"""What the four runs of docs/comparison.md on what the network is shown differ in, each from the one before."""


def test_each_run_on_what_is_shown_changes_one_thing_more() -> None:
    _, expected = assemble(read_recipe(RECIPES / "comparison" / "shown_state_perov5.cfg", OVERRIDES))
    assert expected["model"]["coordinates"]["shows"] == "state"
    for name, changes in SHOWN:
        for key, value in changes.items():
            section, _, option = key.partition(".")
            expected["model"][section][option] = value
        _, found = assemble(read_recipe(RECIPES / "comparison" / f"shown_{name}_perov5.cfg", OVERRIDES))
        assert found == expected
    best: Any = read_recipe(RECIPES / "parts" / "displacement_free.cfg")["model"]
    assert {section: found["model"][section] | options for section, options in best.items()} == {
        section: found["model"][section] for section in best
    }


@pytest.mark.parametrize("name", ["kldm_mp20", "kldm_mp20_small"])
def test_our_own_recipes_for_mp_20(name: str) -> None:
    """What they are for: ten calls, the same in validation and at the end, a schedule, and nothing of the paper's."""
    experiment, tree = assemble(read_recipe(RECIPES / f"{name}.cfg", OVERRIDES))
    assert experiment.sampler == X0Flow(steps=10, over={"coordinates": 4.0})
    assert experiment.validation is not None
    assert experiment.validation.sampler == experiment.sampler
    assert experiment.validation.score == "-structural.crmse@1"
    training = experiment.training
    assert (training.times, training.whole_batches, training.clip_norm) == ("stratified", True, 1.0)
    assert training.precision == "auto"
    schedule = training.learning_rate_schedule
    assert schedule is not None
    ends = training.minutes is not None
    assert ends == (name == "kldm_mp20")
    assert schedule.factor(10**6, 1.0) == (0.0 if ends else 1.0)
    assert tree["model"]["coordinates"]["shows"] == "displacement_free"


@pytest.mark.parametrize(
    ("name", "process", "weight"),
    [
        ("kldm_x0_onehot_mp20_dng", "one_hot.v1", 20.0),
        ("kldm_x0_bits_mp20_dng", "analog_bits.v1", 1.0),
        ("kldm_x0_absorbing_mp20_dng", "absorbing.v1", 0.33),
        ("kldm_eps_onehot_perov5_dng", "one_hot.v1", 20.0),
        ("kldm_eps_onehot_carbon24_dng", "one_hot.v1", 20.0),
        ("kldm_eps_onehot_mp20_dng", "one_hot.v1", 20.0),
        *((f"{peer}_{data}_dng", "one_hot.v1", 20.0) for peer in ("diffcsp", "equicsp") for data in list(DATA)[:3]),
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


def test_the_recipes_of_the_other_methods_are_all_there() -> None:
    peers = ("diffcsp", "equicsp", "flowmm")
    found = {path.stem for path in ALL if path.parent == RECIPES and path.stem.startswith(peers)}
    assert found == set(PEERS)


@pytest.mark.parametrize("name", PEERS)
def test_the_other_methods_train_as_their_authors_do(name: str) -> None:
    epochs, batch_size, step_lr = PEERS[name]
    own = read_recipe(RECIPES / f"{name}.cfg")["model"]["network"]
    experiment, tree = assemble(read_recipe(RECIPES / f"{name}.cfg", OVERRIDES))
    training, model = experiment.training, experiment.model
    assert (training.epochs, training.batch_size) == (epochs, batch_size)
    assert (own["hidden"], own["layers"]) == (512, 6)
    assert (training.weight_decay, training.amsgrad) == (0.0, False)
    assert tree["data"]["name"] == DATA[name.split("_")[1]]
    assert tree["model"]["coordinates"].get("step_lr") == step_lr
    assert training.clip_value is not None
    # A loss of weight w moves the total by w / (sum of the weights): what is clipped is that much smaller than a sum.
    losses = {learnt: torch.tensor(0.0) for learnt, process in model.processes.items() if process.predicts}
    changes = {learnt: float(model.total({**losses, learnt: torch.tensor(1.0)})) for learnt in losses}
    assert changes == pytest.approx({learnt: model.weights[learnt] * changes["lattice"] for learnt in losses})
    if name.startswith("flowmm"):  # their code clips a mean at 0.5
        assert training.clip_value == 0.5
        assert sum(changes.values()) == pytest.approx(1)
    else:  # and these a sum, in which the lattice has weight 1
        assert training.clip_value == pytest.approx(0.5 * changes["lattice"])
        assert training.ema_decay == 0.0


def test_table_2_s_recipes_are_all_there() -> None:
    assert {path.stem for path in ALL if path.parent.name == "table2"} == {f"{name}_mp20_dng" for name in TABLE_2}


@pytest.mark.parametrize("name", TABLE_2)
def test_table_2_s_recipes_measure_its_columns(name: str) -> None:
    _, plain = assemble(read_recipe(RECIPES / f"{name}_mp20_dng.cfg", OVERRIDES))
    _, found = assemble(read_recipe(RECIPES / "table2" / f"{name}_mp20_dng.cfg", OVERRIDES))
    stability = found["metrics"].pop("stability")
    assert found == plain
    assert stability["potential"] == {"@potentials": "mattersim.v1", "weights": None, "device": None}
    assert stability["hull"] == stability["known"]
    assert stability["hull"]
    wanted = definitions("stability.v1")[""]
    assert all(stability["relaxation"][key] in wanted[f"relaxation.{key}"] for key in ("fmax", "cell"))
    assert [stability["corrections"]] == wanted["hull.corrections"]
    assert [stability["matcher"]] == wanted["matcher.name"]
    assert 0.1 in stability["thresholds"]


def test_table_2_s_recipes_name_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = RECIPES / "table2" / "kldm_x0_absorbing_mp20_dng.cfg"
    assert "mattersim" in refused("check", recipe)
    assert "mattersim" in refused("run", recipe, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    emt = ("--metrics.stability.potential.@potentials", "emt.v1")
    assert "alex_mp.jsonl.gz" in refused("check", recipe, *emt)
