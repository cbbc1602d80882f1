"""A run and its folder: what it leaves, that it repeats, and what may be done with it again."""

import csv
import json
import shutil
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kldm.errors import KldmError
from kldm.reading import read_samples
from kldm.recipe import Tree, build
from kldm.runs import run as runs
from kldm.runs.experiment import Experiment
from kldm.runs.run import evaluate_run
from kldm.runs.trained import load_run
from kldm.training import checkpoint as checkpoints
from tests.small import QUICK, RECIPES, kldm, losses, options, refused, rows

run = partial(runs.run, device=torch.device("cpu"))

LABELS = ("train", "train_untrained", "test")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that says what was made: not TensorBoard's, nor durations, nor checkpoints' unordered headers."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "tensorboard" not in path.parts and path.name != "report.json":
            name = str(path.relative_to(folder))
            found[name] = path.read_bytes()
            if path.suffix == ".safetensors":
                tensors = checkpoints.load(path).tensors
                found[name] = b"".join(key.encode() + tensors[key].numpy().tobytes() for key in sorted(tensors))
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key != "seconds"}
    return value


def test_the_folder_holds_everything(finished: Path) -> None:
    from pymatgen.io.cif import CifParser

    assert {".lock", "recipe.cfg", "train.jsonl", "report.json", "checkpoints", "samples", "tensorboard"} == {
        path.name for path in finished.iterdir()
    }
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"best.safetensors", "last.safetensors"}
    assert [row["epoch"] for row in rows(finished)] == [1, 2]
    assert any((finished / "tensorboard").iterdir())
    assert {path.name for path in (finished / "samples").iterdir()} == set(LABELS)
    for label in LABELS:
        place = finished / "samples" / label
        made = read_samples(place / "samples.jsonl")
        assert [(c.target, c.candidate) for c in made] == [(target, 0) for target in range(5)]
        built = [c.structure for c in made if c.structure is not None]
        frames = read_samples(place / "samples.extxyz")
        assert [c.structure.formula for c in frames if c.structure] == [s.formula for s in built]
        with zipfile.ZipFile(place / "structures.zip") as archive:
            names = archive.namelist()
            assert len(names) == len(built) > 0
            for name, structure in zip(names, built, strict=True):
                parser = CifParser.from_str(archive.read(name).decode(), frac_tolerance=0.0, site_tolerance=0.0)
                (read,) = parser.parse_structures(primitive=False)
                assert read.composition == structure.composition
        results = table(place / "results.csv")
        assert {"target", "candidate", "formula", "struct_valid", "reason", "rms"} <= set(results[0])
        assert [(row["target"], row["candidate"]) for row in results] == [(str(target), "0") for target in range(5)]
        for row in results:
            assert (row["struct_valid"] == "True") == (row["reason"] == "")


def test_the_report_says_what_was_measured_and_how(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert report["recipe"] == "quickstart"
    assert report["device"].startswith("cpu")
    assert report["parameters"] > 0
    assert report["seeds"] == {"training": 0, "evaluation": 0}
    assert {"python", "kldm", "torch", "pymatgen"} <= set(report["libraries"])
    assert report["seconds"] > 0
    assert report["training"]["epoch"] == 2
    assert report["training"]["crystals"] == len(load_run(finished)[0].data.load("train"))
    assert tuple(report["evaluation"]) == LABELS
    for label in LABELS:
        found = report["evaluation"][label]
        split = label.removesuffix("_untrained")
        assert found["reference"] == {"name": f"aflow_prototypes/{split}", "rows": 5, "failed": 0, "whole": False}
        assert found["requests"] == 5
        assert found["seconds"] >= 0
        definition = found["metrics"]["csp"]["definition"]
        assert (definition["stol"], definition["ltol"], definition["angle_tol"]) == (0.5, 0.3, 10.0)
        assert definition["rules"]
        assert definition["counts"]["candidates"] == 5
        valid = [row["struct_valid"] == "True" for row in table(finished / "samples" / label / "results.csv")]
        assert definition["counts"]["valid"] == sum(valid)
        matched = [row["rms"] for row in table(finished / "samples" / label / "results.csv") if row["rms"]]
        assert found["metrics"]["csp"]["values"]["structural.match_rate@1"] == len(matched) / 5


def test_the_same_command_again_does_nothing_new(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = contents(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("samples.jsonl")}
    result = kldm("run", RECIPES / "quickstart.cfg", "--out", folder, "--device", "cpu", *options(QUICK))
    assert result.exit_code == 0, result.output
    assert contents(folder) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times  # read, not sampled again
    first = (finished.parent / "output.txt").read_text()
    assert result.stdout.replace(str(folder), "") == first.replace(str(finished), "")
    reports = [json.loads((place / "report.json").read_text()) for place in (folder, finished)]
    assert timeless(reports[0]) == timeless(reports[1])


def test_the_run_s_own_recipe_repeats_it(finished: Path, tmp_path: Path) -> None:
    run(finished / "recipe.cfg", tmp_path / "again")
    assert losses(tmp_path / "again") == losses(finished)
    assert (tmp_path / "again" / "recipe.cfg").read_bytes() == (finished / "recipe.cfg").read_bytes()
    for label in LABELS:
        for name in ("results.csv", "samples.jsonl", "samples.extxyz", "structures.zip"):
            first, second = (place / "samples" / label / name for place in (finished, tmp_path / "again"))
            assert first.read_bytes() == second.read_bytes(), f"{label}/{name}"


def test_a_run_builds_its_experiment_once(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its untrained baseline is a copy; nor is it built again to see that the folder holds the same run."""
    built: list[int] = []

    def counted(tree: Tree, kind: type[Experiment]) -> tuple[Experiment, Tree]:
        built.append(1)
        return build(tree, kind)

    monkeypatch.setattr("kldm.runs.experiment.build", counted)
    for number in (1, 2):
        run(RECIPES / "quickstart.cfg", tmp_path / "run", overrides=QUICK)
        assert len(built) == number
    for label in LABELS:
        first, second = (place / "samples" / label / "samples.jsonl" for place in (finished, tmp_path / "run"))
        assert first.read_bytes() == second.read_bytes()


def test_another_recipe_in_the_folder_is_refused(finished: Path) -> None:
    before = contents(finished)
    with pytest.raises(KldmError, match=r"another recipe \(training.batch_size differs\); choose another --out"):
        run(RECIPES / "quickstart.cfg", finished, overrides={**QUICK, "training.batch_size": 32})
    with pytest.raises(KldmError, match=r"model.network.hidden differs"):
        run(RECIPES / "quickstart.cfg", finished, overrides={**QUICK, "model.network.hidden": 16})
    assert contents(finished) == before


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(KldmError, match="it is neither an empty folder nor a run"):
        run(RECIPES / "quickstart.cfg", tmp_path, overrides=QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_longer_training_and_another_sampler_go_on_in_the_folder(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    longer = {**QUICK, "training.epochs": 3, "sampler.steps": 2, "evaluation.splits": ["test"]}
    report = run(RECIPES / "quickstart.cfg", folder, overrides={**longer, "evaluation.untrained": False})
    assert [row["epoch"] for row in rows(folder)] == [1, 2, 3]
    assert losses(folder)[:2] == losses(finished)
    assert tuple(report.evaluation) == ("test",)
    samples = "samples/test/samples.jsonl"
    assert (folder / samples).read_bytes() != (finished / samples).read_bytes()


def test_memory_is_no_part_of_a_run(finished: Path, tmp_path: Path) -> None:
    """Training may go on in other pieces; samples that a smaller memory made are kept, unless another batch is asked
    for."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    place = folder / "samples" / "test"
    origin = json.loads((place / "origin.json").read_text())
    assert origin["max_pairs"] == 64_000
    (place / "origin.json").write_text(json.dumps(origin | {"max_pairs": 512}))
    written = (place / "samples.jsonl").stat().st_mtime_ns
    few = {**QUICK, "evaluation.splits": ["test"], "evaluation.untrained": False, "training.max_pairs": 50}
    run(RECIPES / "quickstart.cfg", folder, overrides=few)
    assert (place / "samples.jsonl").stat().st_mtime_ns == written
    run(RECIPES / "quickstart.cfg", folder, overrides={**few, "evaluation.max_pairs": 100})
    assert (place / "samples.jsonl").stat().st_mtime_ns > written
    assert json.loads((place / "origin.json").read_text())["max_pairs"] == 100


def test_fewer_epochs_than_done_are_refused(finished: Path) -> None:
    before = contents(finished)
    with pytest.raises(KldmError, match=r"past the \d+ of training.epochs = 1"):
        run(RECIPES / "quickstart.cfg", finished, overrides={**QUICK, "training.epochs": 1})
    assert contents(finished) == before


def test_training_alone_keeps_what_was_evaluated(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    earlier = json.loads((folder / "report.json").read_text())
    again = run(RECIPES / "quickstart.cfg", folder, overrides=QUICK, evaluate=False)
    assert again.as_json()["evaluation"] == earlier["evaluation"]
    longer = run(RECIPES / "quickstart.cfg", folder, overrides={**QUICK, "training.epochs": 3}, evaluate=False)
    assert longer.evaluation == {}


def test_impossible_evaluations_are_refused_before_training(tmp_path: Path) -> None:
    for overrides, told in (
        ({"evaluation.splits": ["tset"]}, r"evaluation\.splits\.0: must be one of .* 'tset'; did you mean 'test'\?"),
        ({"evaluation.limit": 0}, r"evaluation\.limit: must be at least 1, got 0"),
        ({"evaluation.candidates": 0}, r"evaluation\.candidates: must be from 1 to 100,000, got 0"),
        ({"evaluation.max_pairs": 0}, r"evaluation\.max_pairs: must be at least 1, got 0"),
        ({"validation.split": "vall"}, r"validation\.split: must be one of .* 'vall'; did you mean 'val'\?"),
        ({"validation.size": 0}, r"validation\.size: must be at least 1, got 0"),
    ):
        with pytest.raises(KldmError, match=told):
            run(RECIPES / "quickstart.cfg", tmp_path / "run", overrides={**QUICK, **overrides})
        assert not (tmp_path / "run").exists()


def test_validation_of_a_run_chooses_and_reports(tmp_path: Path) -> None:
    overrides = {**QUICK, "training.validate_every": 1, "validation.size": 3, "validation.sampler.steps": 2}
    report = run(RECIPES / "quickstart.cfg", tmp_path, overrides={**overrides, "evaluation.splits": ["test"]})
    found = rows(tmp_path)
    assert all(0 <= row["validation_structural.match_rate@1"] <= 1 for row in found)
    assert report.about["training"]["best"] == max(row["validation"] for row in found)


def test_a_validation_score_with_a_minus_is_the_better_the_lower(tmp_path: Path) -> None:
    overrides = {**QUICK, "training.epochs": 3, "training.validate_every": 1, "validation.size": 3}
    overrides |= {"validation.score": "-structural.crmse@1", "validation.sampler.steps": 2}
    report = run(RECIPES / "quickstart.cfg", tmp_path, overrides=overrides, evaluate=False)
    found = rows(tmp_path)
    assert all(row["validation"] == -row["validation_structural.crmse@1"] for row in found)
    assert {f"validation_structural.{name}@1" for name in ("match_rate", "share_below_0.1")} <= found[0].keys()
    with pytest.raises(KldmError, match=r"another recipe \(validation.score differs\)"):
        run(RECIPES / "quickstart.cfg", tmp_path, overrides={**overrides, "validation.score": "structural.crmse@1"})
    lowest = min(row["validation_structural.crmse@1"] for row in found)
    assert report.about["training"]["best"] == -lowest
    assert report.about["training"]["best_epoch"] == next(
        row["epoch"] for row in found if row["validation_structural.crmse@1"] == lowest
    )


def test_a_score_that_no_metric_gives_is_told_before_training(tmp_path: Path) -> None:
    overrides = {**QUICK, "training.validate_every": 1, "validation.size": 3, "validation.score": "-structural.crmse@2"}
    with pytest.raises(KldmError, match=r"no metric gives 'structural.crmse@2'; did you mean 'structural.crmse@1'\?"):
        run(RECIPES / "quickstart.cfg", tmp_path / "run", overrides=overrides, evaluate=False)
    assert not (tmp_path / "run").exists()  # the folder is free for the recipe without the mistake


def test_a_run_is_loaded_from_its_folder_or_a_checkpoint(finished: Path, tmp_path: Path) -> None:
    experiment, record, file = load_run(finished)
    assert file == finished / "checkpoints" / "best.safetensors"
    again, _, _ = load_run(file)
    for name, value in record.part("average").items():
        assert torch.equal(experiment.model.state_dict()[name], value)
        assert torch.equal(again.model.state_dict()[name], value)
    assert record.recipe["model"]["lattice"]["codec"]["fit"]["mean"]["pooled"]
    with pytest.raises(KldmError, match="no checkpoint here"):
        load_run(tmp_path)
    assert checkpoints.load(file).state["epoch"] == 2


def test_a_run_s_samples_are_judged_again(finished: Path, tmp_path: Path) -> None:
    report = evaluate_run(finished, tmp_path / "out").as_json()
    before = json.loads((finished / "report.json").read_text())
    for label in LABELS:
        assert report["evaluation"][label] == timeless(before["evaluation"][label])
        expected = (finished / "samples" / label / "results.csv").read_bytes()
        assert (tmp_path / "out" / f"{label}.csv").read_bytes() == expected
    assert (tmp_path / "out" / "report.json").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = refused("run", RECIPES / "quickstart.cfg", "--out", tmp_path / "file" / "run", *options(QUICK))
    assert str(tmp_path / "file") in told


def test_a_run_older_than_a_key_goes_on_with_its_default(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    lines = (folder / "recipe.cfg").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("amsgrad")]
    assert len(kept) == len(lines) - 1
    (folder / "recipe.cfg").write_text("\n".join(kept) + "\n")
    run(RECIPES / "quickstart.cfg", folder, overrides=QUICK)
    assert "amsgrad = true" in (folder / "recipe.cfg").read_text()
    with pytest.raises(KldmError, match=r"training\.amsgrad differs"):
        run(RECIPES / "quickstart.cfg", folder, overrides={**QUICK, "training.amsgrad": False})


def fitted(folder: Path) -> Any:
    return checkpoints.load(folder / "checkpoints" / "best.safetensors").recipe["model"]["lattice"]["codec"]["fit"]


def test_fine_tuning_keeps_the_statistics_of_its_start(finished: Path, tmp_path: Path) -> None:
    """On other crystals; and goes on, and is exported, when the start is gone."""
    start, folder = tmp_path / "start", tmp_path / "tuned"
    shutil.copytree(finished, start)
    tuned = {**QUICK, "data.max_atoms": 4, "training.start_from": str(start), "training.learning_rate": 1e-9}
    run(RECIPES / "quickstart.cfg", folder, overrides=tuned, evaluate=False)
    assert fitted(folder) == fitted(finished)
    weights, before = (load_run(place)[1].weights for place in (folder, finished))
    assert all(torch.allclose(value, before[name], atol=1e-6) for name, value in weights.items())
    shutil.rmtree(start)
    run(RECIPES / "quickstart.cfg", folder, overrides={**tuned, "training.epochs": 3}, evaluate=False)
    assert [row["epoch"] for row in rows(folder)] == [1, 2, 3]
    assert fitted(folder) == fitted(finished)
    with pytest.raises(KldmError, match=r"another recipe \(training.start_from differs\)"):
        run(RECIPES / "quickstart.cfg", folder, overrides={**tuned, "training.start_from": str(finished)})
    assert kldm("export", folder, "--out", tmp_path / "model.safetensors").exit_code == 0
    assert checkpoints.load(tmp_path / "model.safetensors").state["epoch"] == 3
    run(RECIPES / "quickstart.cfg", tmp_path / "plain", overrides={**QUICK, "data.max_atoms": 4}, evaluate=False)
    assert fitted(tmp_path / "plain") != fitted(finished)


def test_a_start_with_other_statistics_is_refused(finished: Path, tmp_path: Path) -> None:
    raw = {"training.start_from": str(finished), "model.lattice.codec.standardise": False}
    told = refused("train", RECIPES / "quickstart.cfg", "--out", tmp_path / "run", *options({**QUICK, **raw}))
    assert told.startswith("model.lattice: it takes other statistics of the training split than in the model of")
    nowhere = {"training.start_from": str(tmp_path / "nowhere")}
    told = refused("train", RECIPES / "quickstart.cfg", "--out", tmp_path / "run", *options({**QUICK, **nowhere}))
    assert "nowhere: no checkpoint here" in told
    assert not (tmp_path / "run").exists()
