"""`kldm relax`, its entries as a hull, and `kldm evaluate --metric stability.v1`: files, values and mistakes."""

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import ase.io
import pytest

from kldm.potentials import EMT
from kldm.reading import read_samples
from tests.metals import fcc, ordered
from tests.small import RECIPES, kldm


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLDM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Elements as a reference, and samples of which two are like each other and one has failed."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "elements.json").write_text(json.dumps([fcc("Cu", 3.6).as_dict(), fcc("Au", 4.1).as_dict()]))
    made = [ordered("Au", "Cu", 3.75), ordered("Cu", "Au", 4.0), ordered("Cu", "Au", 3.95), fcc("Fe", 3.6), None]
    rows = [
        {"target": n, "candidate": 0, "structure": structure and structure.as_dict()}
        for n, structure in enumerate(made)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def hull(place: Path) -> Path:
    done = kldm("relax", place / "elements.json", "--potential", "emt.v1", "--out", place / "elements")
    assert done.exit_code == 0, done.output
    assert "2 structures (0 not converged), 0 failed" in done.output
    return place / "elements" / "entries.json.gz"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_relaxed_folder_holds_structures_energies_and_entries(place: Path, hull: Path) -> None:
    found = rows_of(hull.parent / "relaxation.csv")
    assert [row["formula"] for row in found] == ["Cu", "Au"]
    assert all(float(row["energy"]) <= float(row["energy_before"]) for row in found)
    frames: Any = ase.io.read(hull.parent / "samples.extxyz", ":")
    assert [frame.get_potential_energy() for frame in frames] == [float(row["energy"]) for row in found]
    entries = json.loads(gzip.decompress(hull.read_bytes()))
    assert [entry["energy"] for entry in entries] == [float(row["energy"]) for row in found]
    assert {json.dumps(entry["parameters"]["potential"]) for entry in entries} == {json.dumps(dict(EMT().identity))}
    report = json.loads((hull.parent / "relaxation.json").read_text())
    assert (report["requests"], report["relaxed"], report["failures"]) == (2, 2, {})
    assert report["relaxation"]["fmax"] == 0.05


def test_entries_are_read_by_pymatgen(hull: Path) -> None:
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    entries = [ComputedStructureEntry.from_dict(entry) for entry in json.loads(gzip.decompress(hull.read_bytes()))]
    assert [entry.reduced_formula for entry in entries] == ["Cu", "Au"]
    assert len(read_samples(hull)) == 2, "they serve as a reference too"


def test_failed_structures_keep_their_numbers_and_reasons(place: Path, tmp_path: Path) -> None:
    done = kldm("relax", place / "samples.jsonl", "--potential", "emt.v1", "--out", tmp_path / "out")
    assert "3 structures (0 not converged), 2 failed" in done.output
    kept = read_samples(tmp_path / "out" / "samples.jsonl")
    assert [candidate.target for candidate in kept] == [0, 1, 2, 3, 4]
    assert [candidate.reason for candidate in kept][3:] == [
        "the potential failed: No EMT-potential for Fe",
        "no structure",
    ]
    assert len(rows_of(tmp_path / "out" / "relaxation.csv")) == 5
    again = kldm("relax", tmp_path / "out", "--potential", "emt.v1", "--limit", "2")
    assert again.exit_code == 0
    assert len(rows_of(tmp_path / "out" / "relaxed-1" / "relaxation.csv")) == 2


def test_samples_are_judged_by_the_hull(place: Path, hull: Path, tmp_path: Path) -> None:
    arguments = (
        "--reference",
        place / "elements.json",
        "--metric",
        "stability.v1",
        "--metric.potential.@potentials",
        "emt.v1",
    )
    keys = ("--metric.hull", json.dumps([str(hull)]))
    done = kldm("evaluate", place / "samples.jsonl", *arguments, *keys, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "report.json").read_text())
    found = report["evaluation"]["samples"]["metrics"]["stability.v1"]
    values = found["values"]
    assert (values["unique"], values["novel"], values["n_failed"]) == (0.4, 0.6, 2)
    assert values["stable_100meV"] == 0.6
    assert re.search(r"^stability\.v1\.n_failed +2$", done.output, re.MULTILINE)
    table = rows_of(tmp_path / "results.csv")
    assert [row["unique"] for row in table] == ["True", "True", "False", "", ""]
    compared = kldm("compare", tmp_path)
    assert "published figures of stability.v1 are by another definition" in compared.output


def test_an_evaluation_beside_a_relaxation_leaves_it_alone(place: Path, hull: Path) -> None:
    before = contents(hull.parent)
    done = kldm("evaluate", hull.parent, "--reference", place / "elements.json", "--metric", "stability.v1")
    assert done.exit_code == 0, done.output
    assert (hull.parent / "evaluation-1" / "report.json").is_file()
    assert {file: file.read_bytes() for file in before} == before


def test_two_samples_of_one_number_keep_their_energies(tmp_path: Path) -> None:
    rows = [
        {"target": 0, "candidate": 0, "structure": fcc(*element).as_dict()} for element in (("Cu", 3.6), ("Au", 4.1))
    ]
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert kldm("relax", tmp_path / "twice.jsonl", "--potential", "emt.v1", "--out", tmp_path / "out").exit_code == 0
    frames: Any = ase.io.read(tmp_path / "out" / "samples.extxyz", ":")
    table = rows_of(tmp_path / "out" / "relaxation.csv")
    assert [frame.get_potential_energy() for frame in frames] == [float(row["energy"]) for row in table]


def test_options_with_a_dot_stand_anywhere(place: Path, tmp_path: Path) -> None:
    arguments = (
        "--metric.relaxation.max_steps",
        "1",
        "--reference",
        place / "elements.json",
        "--metric.relaxation.fmax=0.2",
    )
    done = kldm(
        *("evaluate", *arguments, "--metric", "stability.v1", "--metric.potential.@potentials", "emt.v1"),
        *("--out", tmp_path, place / "samples.jsonl"),
    )
    assert done.exit_code == 0, done.output
    judged = json.loads((tmp_path / "report.json").read_text())["evaluation"]["samples"]
    definition = judged["metrics"]["stability.v1"]["definition"]
    assert (definition["relaxation"]["max_steps"], definition["relaxation"]["fmax"]) == (1, 0.2)


JUDGE = ("evaluate", "SAMPLES", "--reference", "REFERENCE")
BARE = (*JUDGE, "--metric", "stability.v1")
STABILITY = (*BARE, "--metric.potential.@potentials", "emt.v1")
RELAX = ("relax", "SAMPLES", "--potential")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*RELAX, "emt"), "--potential: @potentials holds no 'emt'; did you mean 'emt.v1'?"),
        ((*RELAX, "emt.v1", "--relaxation.fmx", "1"), "--relaxation.fmx: unknown key; did you mean 'fmax'?"),
        ((*RELAX, "emt.v1", "--relaxation.fmax", "-3"), "--relaxation.fmax: must be above 0, got -3.0"),
        ((*RELAX, "emt.v1", "--potential.weights", "x"), "--potential.weights: unknown key"),
        ((*RELAX, "emt.v1", "--model.hidden", "3"), "--model.hidden: is no key of the potential or the relaxation"),
        ((*RELAX, "emt.v1", "--workers", "0"), "workers: must be a number of processes, or -1"),
        ((*RELAX, "emt.v1", "--time-limit", "nan"), "time_limit: must be a positive number of seconds"),
        ((*RELAX, "emt.v1", "--time-limit", "1e300"), "time_limit: must be a positive number of seconds, got 1e+300"),
        ((*BARE, "--relaxation.fmax", "1"), "--relaxation.fmax: is no key of the metric"),
        ((*RELAX, "emt.v1", "--fmax", "1"), "--fmax: there is no such option"),
        (("relax", "absent", "--potential", "emt.v1"), "reference absent: neither a file nor DATASET/SPLIT"),
        ((*RELAX, "mattersim.v1", "--potential.weights", "absent.pth"), "mattersim.v1: "),
        ((*BARE, "--metric.hull", "HULL"), "--metric.hull: a hull is of no use without energies"),
        ((*JUDGE, "--metric.hull", "HULL"), "--metric.hull: unknown key"),
        ((*JUDGE, "--potential.device", "cpu"), "--potential.device: is no key of the metric"),
        ((*STABILITY, "--metric.hull", "SAMPLES"), "samples.jsonl:1: it is not an entry with a composition"),
        ((*STABILITY, "--metric.hull", "REFERENCE"), "elements.json, entry 0: it is not an entry with a composition"),
        ((*STABILITY, "--metric.hull", '["absent.json"]'), "absent.json: cannot be read (No such file or directory)"),
        ((*STABILITY, "--metric.hull", "HULL", "--metric.corrections", "mp20"), "--metric.corrections: wants"),
        ((*STABILITY, "--metric.hull", "HULL", "--metric.corrections", "mp2020"), "leave the corrections out"),
        ((*STABILITY, "--metric.matcher", "orderd"), "--metric.matcher: wants"),
        ((*STABILITY, "--metric.relaxation.fmax", "0"), "--metric.relaxation.fmax: must be above 0, got 0.0"),
        ((*STABILITY, "--metric.relaxation.max_steps"), "--metric.relaxation.max_steps: has no value"),
    ],
)
def test_mistakes_are_one_sentence(
    place: Path, hull: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    paths = {"SAMPLES": place / "samples.jsonl", "REFERENCE": place / "elements.json", "HULL": hull}
    words: list[str | Path] = []
    for before, word in zip(("", *arguments), arguments, strict=False):
        named = paths.get(word, word)
        words.append(json.dumps([str(named)]) if before == "--metric.hull" and word in paths else named)
    done = kldm(*words, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "report.json").exists()


def test_structures_that_are_there_are_kept(place: Path, hull: Path) -> None:
    before = contents(hull.parent)
    done = kldm("relax", place / "samples.jsonl", "--potential", "emt.v1", "--out", hull.parent)
    assert done.exit_code == 1
    assert "the folder has a file samples.jsonl already, which is not replaced" in done.output
    assert contents(hull.parent) == before


def test_a_folder_that_cannot_be_made_is_told_before_the_work(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    judge = (
        "evaluate",
        "--reference",
        place / "elements.json",
        "--metric",
        "stability.v1",
        "--metric.potential.@potentials",
        "emt.v1",
    )
    for command in (("relax", "--potential", "emt.v1"), judge):
        arguments = (*command, place / "samples.jsonl", "--out", tmp_path / "file" / "out")
        done = kldm(*arguments)
        assert done.exit_code == 1
        assert "the folder cannot be created" in done.output


RECIPE = """
[recipe]
extends = ["{recipes}/quickstart_dng.cfg"]

[metrics.stability]
@metrics = "stability.v1"
hull = ["{hull}"]

[metrics.stability.potential]
@potentials = "emt.v1"

[metrics.stability.relaxation]
max_steps = 5
"""


def test_a_recipe_may_measure_stability(hull: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.cfg"
    path.write_text(RECIPE.format(recipes=RECIPES, hull=hull))
    done = kldm("check", path)
    assert done.exit_code == 0, done.output
    assert "largest_change = 5.0" in done.output
    for command in ("check", "run"):
        lost = kldm(command, path, "--metrics.stability.hull", json.dumps([str(tmp_path / "absent.json")]))
        assert lost.exit_code == 1
        assert "absent.json: cannot be read" in lost.output
    assert not (tmp_path / "runs").exists()
