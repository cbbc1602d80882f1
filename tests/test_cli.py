"""The commands, as a user types them."""

import json
from pathlib import Path

import attrs
import pytest
from ase.io import read

from kldm.metrics.matching.selection import consensus
from kldm.processes import VPEuclidean
from kldm.reading import read_samples
from kldm.recipe import read_recipe
from kldm.registry import SHELVES
from kldm.runs.trained import load_run
from kldm.samplers import X0Flow
from tests.small import OVERRIDES, QUICK, RECIPES, kldm, options, refused

QUICKSTART = RECIPES / "quickstart.cfg"
COMMANDS = ("run", "train", "sample", "export", "evaluate", "compare", "check", "components")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str) -> None:
    result = kldm(command, "--help")
    assert result.exit_code == 0
    assert f"{command} [OPTIONS]" in result.output
    assert ("--code" in result.output) == (command != "compare")
    overview = kldm("--help").output
    assert f"\n  {command} " in overview


def test_run_prints_a_table_and_the_folder(finished: Path) -> None:
    lines = (finished.parent / "output.txt").read_text().splitlines()
    assert lines[0].split() == ["train", "train_untrained", "test"]
    assert lines[2].split() == ["reference", "5", "5", "5"]
    assert any(line.startswith("csp.structural.match_rate@1") for line in lines)
    assert lines[-1] == f"run folder: {finished}"


def test_train_then_run_goes_on(tmp_path: Path) -> None:
    arguments: tuple[str | Path, ...] = (
        QUICKSTART,
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        *options({**QUICK, "sampler.steps": 1}),
    )
    result = kldm("train", *arguments)
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "run" / "samples").exists()
    log = (tmp_path / "run" / "train.jsonl").read_bytes()
    assert kldm("run", *arguments).exit_code == 0
    assert (tmp_path / "run" / "train.jsonl").read_bytes() == log
    assert (tmp_path / "run" / "samples" / "test" / "results.csv").exists()


@pytest.mark.parametrize("source", [".", "checkpoints/best.safetensors"])
def test_sample_makes_exactly_what_formulas_ask_for(finished: Path, tmp_path: Path, source: str) -> None:
    arguments: list[str | Path] = [
        "--formula",
        "LiFePO4",
        "--formula",
        "Na2Cl2",
        "--count",
        "3",
        "--out",
        tmp_path,
        "--device",
        "cpu",
    ]
    result = kldm("sample", finished / source, *arguments)
    assert result.exit_code == 0, result.output
    assert str(tmp_path) in result.output
    candidates = read_samples(tmp_path / "samples.jsonl")
    assert [(c.target, c.candidate) for c in candidates] == [(target, i) for i in range(3) for target in (0, 1)]
    formulas = [c.structure.formula for c in candidates if c.structure is not None]
    failed = sum(c.structure is None for c in candidates)
    assert f"{6 - failed} structures, {failed} failed" in result.output
    assert set(formulas) == {"Li1 Fe1 P1 O4", "Na2 Cl2"}
    assert all(c.reason for c in candidates if c.structure is None)


def test_one_of_the_candidates_is_selected(finished: Path, tmp_path: Path) -> None:
    arguments = ["--formula", "NaCl", "--formula", "CsCl", "--candidates", "3", "--device", "cpu"]
    result = kldm("sample", finished, *arguments, "--select", "consensus", "--out", tmp_path / "samples")
    assert result.exit_code == 0, result.output
    assert "one of 3 is selected for each composition" in result.output
    candidates = read_samples(tmp_path / "samples" / "samples.jsonl")
    assert len(candidates) == 6
    assert sorted(c.target for c in candidates if c.selected) == [0, 1]
    expected = consensus([attrs.evolve(c, selected=False) for c in candidates])
    assert [c.selected for c in candidates] == [c.selected for c in expected]
    frames = read_samples(tmp_path / "samples" / "samples.extxyz")
    marks = {(c.target, c.candidate): c.selected for c in candidates if c.structure is not None}
    assert {(c.target, c.candidate): c.selected for c in frames} == marks
    report = json.loads((tmp_path / "samples" / "report.json").read_text())
    assert (report["selection"]["of"], report["request"]["select"]) == (3, "consensus")
    assert report["selection"]["rule"].startswith("consensus: of the structurally valid candidates")
    plain = ["--count", "3", *arguments[:4], "--device", "cpu"]
    assert kldm("sample", finished, *plain, "--out", tmp_path / "plain").exit_code == 0
    without = read_samples(tmp_path / "plain" / "samples.jsonl")
    assert [c.structure for c in without] == [c.structure for c in candidates]
    assert not any(c.selected for c in without)


def test_a_folder_of_weights_is_sampled_like_its_file(finished: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    assert kldm("export", finished, "--out", weights / "model.safetensors").exit_code == 0
    for model in (weights, weights / "model.safetensors"):
        assert kldm("sample", model, "--formula", "NaCl", "--device", "cpu").exit_code == 0
    files = [weights / f"samples-{number}" / "samples.jsonl" for number in (1, 2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    report = json.loads((files[0].parent / "report.json").read_text())
    assert report["checkpoint"] == str(weights / "model.safetensors")


def test_sample_formula_units(finished: Path, tmp_path: Path) -> None:
    arguments: list[str | Path] = [
        "--formula",
        "Na2Cl2",
        "--formula",
        "Si",
        "--z",
        "1-3",
        "--out",
        tmp_path,
        "--device",
        "cpu",
    ]
    assert kldm("sample", finished, *arguments).exit_code == 0
    sizes = {c.target: len(c.structure) for c in read_samples(tmp_path / "samples.jsonl") if c.structure}
    assert len(sizes) >= 4
    expected = [2, 4, 6, 1, 2, 3]
    assert all(size == expected[target] for target, size in sizes.items())


def test_sample_a_split_beside_the_run(finished: Path, tmp_path: Path) -> None:
    arguments: list[str | Path] = ["--split", "val", "--limit", "4", "--count", "2", "--seed", "3", "--device", "cpu"]
    runs = []
    for out in ("one", "two"):
        assert kldm("sample", finished, *arguments, "--out", tmp_path / out).exit_code == 0
        runs.append((tmp_path / out / "samples.jsonl").read_bytes())
    assert runs[0] == runs[1]
    candidates = read_samples(tmp_path / "one" / "samples.jsonl")
    assert len(candidates) == 8
    split = load_run(finished)[0].data.load("val")
    numbers = {c.target for c in candidates}
    assert len(numbers) == 4 < len(split)
    for c in candidates:
        if c.structure is not None:
            assert sorted(c.structure.atomic_numbers) == sorted(split.batch([c.target]).species.tolist())
    assert {frame.info["name"] for frame in read(tmp_path / "one" / "samples.extxyz", ":")} <= {
        split.ids[number] for number in numbers
    }


def test_sample_with_another_sampler(finished: Path, tmp_path: Path) -> None:
    arguments: list[str | Path] = ["--formula", "NaCl", "--device", "cpu"]
    changes: dict[str, list[str]] = {
        "recipe's": [],
        "steps": ["--sampler.steps", "2"],
        "sampler": ["--sampler.@samplers", "probability_flow.v1", "--sampler.steps=2"],
    }
    found = {}
    for name, change in changes.items():
        assert kldm("sample", finished, *arguments, *change, "--out", tmp_path / name).exit_code == 0
        found[name] = (tmp_path / name / "samples.jsonl").read_bytes()
    assert len(set(found.values())) == 3
    report = json.loads((tmp_path / "sampler" / "report.json").read_text())
    assert report["overrides"] == {"sampler.@samplers": "probability_flow.v1", "sampler.steps": 2}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_exported_model_samples_like_the_run(finished: Path, tmp_path: Path, precision: str) -> None:
    file = tmp_path / "model.safetensors"
    result = kldm("export", finished, "--out", file, "--precision", precision)
    assert result.exit_code == 0, result.output
    assert file.stat().st_size < (finished / "checkpoints" / "best.safetensors").stat().st_size
    arguments: list[str | Path] = ["--formula", "Na2Cl2", "--device", "cpu"]
    sizes, samples = {}, {}
    for name, source in (("run", finished), ("file", file)):
        assert kldm("sample", source, *arguments, "--out", tmp_path / name).exit_code == 0
        (candidate,) = read_samples(tmp_path / name / "samples.jsonl")
        assert candidate.structure is not None
        sizes[name], samples[name] = candidate.structure.lattice.abc, candidate
    assert sizes["file"] == pytest.approx(sizes["run"], rel=1e-6 if precision == "fp32" else 0.05)
    assert refused("export", finished, "--out", file).endswith("remove it, or choose another --out")
    other = tmp_path / "other.safetensors"
    overrides = {"sampler.@samplers": "x0_flow.v1", "sampler.steps": 4, "model.lattice.eta": 0.5}
    assert kldm("export", finished, "--out", other, *options(overrides)).exit_code == 0
    experiment, _, _ = load_run(other)
    assert experiment.sampler == X0Flow(steps=4)
    lattice = experiment.model.processes["lattice"]
    assert isinstance(lattice, VPEuclidean)
    assert lattice.eta == 0.5


def test_evaluate_a_run(finished: Path, tmp_path: Path) -> None:
    result = kldm("evaluate", finished, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    printed = (finished.parent / "output.txt").read_text().splitlines()
    assert result.output.splitlines()[:-1] == printed[:-1]
    assert result.output.splitlines()[-1] == f"report: {tmp_path / 'report.json'}"


@pytest.mark.parametrize("name", ["samples.jsonl", "samples.extxyz", "structures.zip"])
def test_evaluate_a_file_beside_a_reference(finished: Path, tmp_path: Path, name: str) -> None:
    samples = tmp_path / "samples"
    assert kldm("sample", finished, "--limit", "3", "--out", samples, "--device", "cpu").exit_code == 0
    reference: list[str | Path] = ["--reference", "aflow_prototypes/test", "--out", tmp_path / "out"]
    result = kldm("evaluate", samples / name, *reference)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())["evaluation"][
        "samples" if name != "structures.zip" else "structures"
    ]
    assert report["reference"]["name"] == "aflow_prototypes/test"
    assert report["reference"]["whole"]
    if name != "structures.zip":  # the run left large cells out, so that its rows are others
        assert report["alignment"].startswith("Rows are placed by their ids")
        assert "the ids were taken" in report["notes"][0]
    assert report["reference"]["rows"] > report["requests"] > 0  # the others count as targets without a candidate
    assert (tmp_path / "out" / "results.csv").read_text().count("\n") == 1 + report["requests"]


def test_compare_runs_side_by_side(finished: Path, finished_dng: Path, tmp_path: Path) -> None:
    result = kldm("compare", finished, finished_dng, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "structural match_rate@1" in result.output
    assert "struct_valid" in result.output
    assert {"comparison.json", "comparison.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_check_prints_a_complete_recipe_and_does_no_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    result = kldm("check", QUICKSTART, *options(QUICK))
    assert result.exit_code == 0, result.output
    assert list(tmp_path.iterdir()) == []
    assert "# network: " in result.output
    assert "# data: test: " in result.output
    assert ("# data: val: " in result.output) == ("[validation]" in result.output)
    (tmp_path / "printed.cfg").write_text(result.output)
    printed, complete = read_recipe(tmp_path / "printed.cfg"), read_recipe(finished / "recipe.cfg")
    complete["model"]["lattice"]["codec"].pop("fit")
    printed["model"]["lattice"]["codec"].pop("fit", None)
    assert printed == complete


def test_components_lists_all_with_a_line_and_parameters() -> None:
    result = kldm("components")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    for shelf in SHELVES.values():
        assert f"@{shelf.kind}" in lines
        for name in shelf.names():
            if shelf.get(name).__module__.startswith("kldm."):
                (line,) = (line for line in lines if line.startswith(f"  {name}: "))
                assert len(line) > len(name) + 10
    assert "      hidden: int = 512" in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", QUICKSTART, "--model.network.hiden", "8"], "model.network.hiden: unknown key; did you mean 'hidden'?"),
        (["check", QUICKSTART, "--model.lattice.parameterization", "y0"], "model.lattice.parameterization"),
        (["check", QUICKSTART, "--training.epochs", "six"], 'training.epochs: wants int, got "six"'),
        (["check", QUICKSTART, "--sampler.@samplers", "euler.v1"], "did you mean 'euler_maruyama.v1'?"),
        (["check", QUICKSTART, "--training.clip_norm", "-1"], "must be above 0"),
        (["check", QUICKSTART, "stray"], "cannot read 'stray'"),
        (["check", QUICKSTART, "--cod", "mine.py"], "--cod: there is no such option; did you mean '--code'?"),
        (["check", QUICKSTART, "--training.epochs"], "--training.epochs: has no value"),
        (["check", QUICKSTART, "--data.name", "mp20"], "did you mean 'mp_20'?"),
        (["run", QUICKSTART, "--device", "tpu"], "--device tpu: not usable here"),
        (["run", QUICKSTART, "--device", "cuda:99"], "--device cuda:99: not usable here"),
        (["run", RECIPES / "quickstrat.cfg"], "did you mean 'quickstart.cfg'?"),
        (["run", QUICKSTART, "--code", "nowhere.py"], "nowhere.py: no such file"),
        (["sample", "nowhere"], "no checkpoint here"),
        (["sample", QUICKSTART], "the file is broken"),
        (["evaluate", "nowhere"], "nowhere: there is no such file or folder"),
        (["evaluate", "nowhere.jsonl", "--reference", "mp_20/test"], "nowhere.jsonl: there is no such file or folder"),
    ],
    ids=lambda value: " ".join(Path(str(part)).name for part in value[:2]) if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_a_sentence(
    arguments: list[str | Path], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formula", "NaCl", "--split", "test"], "--formula and --split exclude each other"),
        (["--z", "2"], "--z needs --formula"),
        (["--formula", "NaCl", "--z", "two"], "--z two: wants N or N-M"),
        (["--formula", "Nacl2x"], "--formula Nacl2x: not a chemical formula"),
        (["--split", "tset"], "split tset: no such split; take one of train, val, test"),
        (["--formulas", "NaCl"], "--formulas: there is no such option; did you mean '--formula'?"),
        (["--formula", "NaCl", "--sampler.step", "2"], "sampler.step: unknown key; did you mean 'steps'?"),
        (
            ["--formula", "NaCl", "--sampler.steps", "1000000000000"],
            "must be from 1 to 1,000,000, got 1,000,000,000,000",
        ),
        (
            ["--formula", "NaCl", "--sampler.@samplers", "predictor_corrector.v1", "--sampler.tau", "Infinity"],
            "sampler.tau: must be a finite number",
        ),
        (["--formula", "NaCl", "--model.network.hidden", "4"], "--model.network.hidden: belongs to a model"),
        (
            ["--formula", "NaCl", "--model.coordinates.horizon", "3.0"],
            "--model.coordinates.horizon: belongs to a model",
        ),
        (["--device", "tpu"], "--device tpu"),
        (["--count", "2", "--candidates", "3"], "--count or --candidates: is given more than once; keep one"),
        (["--formula", "NaCl", "--select", "consensus"], "--select: there is one structure per composition"),
        (
            ["--formula", "NaCl", "--select", "consensus", "--count", "2", "--workers", "0"],
            "workers: must be a number of processes, or -1 for all cores, got 0",
        ),
    ],
    ids=str,
)
def test_mistakes_in_sampling(finished: Path, arguments: list[str], message: str) -> None:
    before = sorted(finished.iterdir())
    assert message in refused("sample", finished, *arguments)
    assert sorted(finished.iterdir()) == before


def test_a_run_folder_has_its_own_reference(finished: Path) -> None:
    message = refused("evaluate", finished, "--reference", "mp_20/test", "--workers", "2")
    assert "leave --reference and --workers out" in message


def test_a_run_without_samples_cannot_be_evaluated(tmp_path: Path) -> None:
    overrides = options({**OVERRIDES, "training.epochs": 1})
    assert kldm("train", QUICKSTART, "--out", tmp_path / "run", "--device", "cpu", *overrides).exit_code == 0
    assert "the run has no samples yet; finish it with kldm run" in refused("evaluate", tmp_path / "run")


def test_what_torchrun_s_processes_do_not_share_the_first_alone_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others leave it at once: they would write the same files, or wait for it for ever."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        result = kldm("components")
        assert result.exit_code == 0
        assert ("cspvnet.v1" in result.output) == (rank == "0")
    monkeypatch.setenv("RANK", "1")
    result = kldm("evaluate", tmp_path / "nowhere.jsonl", "--reference", "mp_20/test")
    assert (result.exit_code, result.output) == (0, "")
