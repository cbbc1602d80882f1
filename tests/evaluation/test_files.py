"""`kldm evaluate` on files of any origin: what is written, and that it agrees with the metrics themselves."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from kldm.evaluation.report import Report
from kldm.interfaces import Candidate, Samples
from kldm.metrics import DeNovo, MatchRate
from kldm.reading import SampleFile, read_file
from tests.small import kldm, refused

CORNERS = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])


def salt(cation: str, anion: str, edge: float) -> Structure:
    return Structure(Lattice.cubic(edge), [cation, anion], CORNERS)


REFERENCE = [salt("Cs", "Cl", 4.1), salt("Cs", "Br", 4.3), salt("Rb", "I", 4.4), salt("Al", "N", 3.2)]
ODD = Structure(Lattice.cubic(4.0), ["Na", "Cl"], np.array([[0, 0, 0], [0.01, 0, 0]]))


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return lines(
        tmp_path / "reference.jsonl", [{"target": t, "structure": s.as_dict()} for t, s in enumerate(REFERENCE)]
    )


def evaluate(*arguments: str | Path, out: Path) -> dict[str, Any]:
    """The judgement of the report, and in it what its one metric found."""
    result = kldm("evaluate", *arguments, "--out", out)
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    (judged,) = report["evaluation"].values()
    (found,) = judged["metrics"].values()
    return {**judged, **found}


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_structure_prediction(tmp_path: Path, reference: Path) -> None:
    """Target 0 twice right, 1 wrong then right, 2 failed, 3 never answered."""
    far = salt("Cs", "Br", 4.3)
    far.translate_sites([1], [0.5, 0.5, 0.0])
    cell = salt("Rb", "I", 4.4).as_dict()
    cell["lattice"]["matrix"] = None
    rows = [
        {"target": 0, "candidate": 0, "structure": salt("Cs", "Cl", 4.2).as_dict()},
        {"target": 0, "candidate": 1, "structure": salt("Cs", "Cl", 4.0).as_dict()},
        {"target": 1, "candidate": 0, "structure": ODD.as_dict()},
        {"target": 1, "candidate": 1, "structure": salt("Cs", "Br", 4.3).as_dict()},
        {"target": 2, "candidate": 0, "structure": cell},
    ]
    samples = lines(tmp_path / "samples.jsonl", rows)
    report = evaluate(samples, "--reference", reference, out=tmp_path / "out")
    assert report["metric"] == "match_rate.v1"
    assert report["reference"] == {"name": str(reference), "rows": 4, "failed": 0, "whole": False}
    assert (report["requests"], report["not_built"]) == (5, 1)
    for rule in ("structural", "full"):
        assert report["values"][f"{rule}.match_rate@1"] == 0.25
        assert report["values"][f"{rule}.match_rate@2"] == 0.5
        assert report["values"][f"{rule}.rmse@2"] == pytest.approx(0, abs=1e-6)
        assert report["values"][f"{rule}.crmse@1"] == pytest.approx(0.375, abs=1e-6)
        assert report["values"][f"{rule}.share_below_0.1@2"] == 0.5
    assert report["values"]["METRe"] == 0.25
    assert report["values"]["cRMSE"] == pytest.approx(0.375, abs=1e-6)
    found = table(tmp_path / "out")
    assert [(row["target"], row["candidate"]) for row in found] == [
        ("0", "0"),
        ("0", "1"),
        ("1", "0"),
        ("1", "1"),
        ("2", "0"),
    ]
    assert {
        "target",
        "candidate",
        "formula",
        "struct_valid",
        "comp_valid",
        "fingerprint",
        "reason",
        "rms",
        "max_dist",
    } <= set(found[0])
    assert [bool(row["rms"]) for row in found] == [True, True, False, True, False]
    assert found[4]["reason"]
    again = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [row["rms"] is not None for row in again] == [bool(row["rms"]) for row in found]
    only = evaluate(samples, "--reference", reference, "--k", "1", out=tmp_path / "first")
    assert "structural.match_rate@2" not in only["values"]
    assert only["values"]["structural.match_rate@1"] == 0.25
    assert any("beyond the first 1" in note for note in only["notes"])


def test_a_selection_is_made_or_taken_from_the_samples(tmp_path: Path, reference: Path) -> None:
    """Of target 0 two of three are right, candidate 0 is not; target 1 has an answer alone."""
    other = Structure(Lattice.tetragonal(4.1, 9.0), ["Cs", "Cl"], CORNERS)
    made = [other, salt("Cs", "Cl", 4.2), salt("Cs", "Cl", 4.0)]
    rows: list[dict[str, Any]] = [
        {"target": 0, "candidate": number, "structure": structure.as_dict()} for number, structure in enumerate(made)
    ]
    rows.append({"target": 1, "candidate": 0, "structure": REFERENCE[1].as_dict()})
    plain = lines(tmp_path / "plain.jsonl", rows)
    report = evaluate(plain, "--reference", reference, "--metric.select", "consensus", out=tmp_path / "out")
    for rule in ("structural", "full"):
        found = [report["values"][f"{rule}.match_rate@{at}"] for at in ("1", "selected_of_3", "3")]
        assert found == [0.25, 0.5, 0.5]
    assert [row["selected"] for row in table(tmp_path / "out")] == ["False", "True", "False", "True"]
    for row in (0, 3):
        rows[row]["selected"] = True
    marked = lines(tmp_path / "marked.jsonl", rows)
    report = evaluate(marked, "--reference", reference, out=tmp_path / "marked")
    assert report["values"]["structural.match_rate@selected_of_3"] == 0.25
    assert "mark as selected" in report["definition"]["selected"]
    fewer = evaluate(marked, "--reference", reference, "--k", "2", out=tmp_path / "fewer")
    assert not any("selected" in name for name in fewer["values"])
    assert any("chosen among more candidates" in note for note in fewer["notes"])
    again = evaluate(
        marked, "--reference", reference, "--k", "2", "--metric.select", "consensus", out=tmp_path / "again"
    )
    assert again["values"]["structural.match_rate@selected_of_2"] == 0.25  # of two that differ, the one with more room
    rows[0]["selected"] = "yes"
    told = refused("evaluate", lines(tmp_path / "odd.jsonl", rows), "--reference", reference)
    assert "odd.jsonl:1: 'selected' must be true or false" in told


def test_seeds_are_selected_from_too(tmp_path: Path, reference: Path) -> None:
    files = []
    for seed, right in enumerate((0, 4, 4)):
        made = [structure if row < right else ODD for row, structure in enumerate(REFERENCE)]
        rows: list[dict[str, Any]] = [
            {"target": row, "candidate": 0, "structure": structure.as_dict(), "selected": True}
            for row, structure in enumerate(made)
        ]
        files.append(lines(tmp_path / f"seed{seed}.jsonl", rows))
    arguments = ("--reference", reference, "--metric.rules", '["structural"]')
    plain = evaluate(*files, *arguments, out=tmp_path / "plain")["values"]
    assert not any("selected" in name for name in plain)
    found = evaluate(*files, *arguments, "--metric.select", "consensus", out=tmp_path / "out")["values"]
    assert (found["structural.match_rate@1"], found["structural.match_rate@selected_of_3"]) == (0.0, 1.0)
    assert found["structural.match_rate@1_mean"] == pytest.approx(2 / 3)


def test_the_rows_that_were_asked_for_are_judged_alone(tmp_path: Path, reference: Path) -> None:
    """Of four rows two were asked for, with one success."""
    rows: list[dict[str, Any]] = [
        {"target": 3, "candidate": 0, "structure": REFERENCE[3].as_dict()},
        {"target": 1, "candidate": 0, "structure": None, "reason": "no cell"},
    ]
    samples = lines(tmp_path / "samples.jsonl", rows)
    report = evaluate(samples, "--reference", reference, "--requested", out=tmp_path / "out")
    assert report["reference"] == {"name": str(reference), "rows": 2, "failed": 0, "whole": False}
    assert report["values"]["structural.match_rate@1"] == 0.5
    assert report["values"]["METRe"] == 0.5
    assert "2 of 4 rows of the reference are judged, those that were asked for." in report["notes"]
    assert not any("no candidate" in note for note in report["notes"])
    assert [(row["target"], row["name"], row["formula"]) for row in table(tmp_path / "out")] == [
        ("1", "1", ""),
        ("3", "3", "AlN"),
    ]
    usual = evaluate(samples, "--reference", reference, out=tmp_path / "usual")
    assert usual["values"]["structural.match_rate@1"] == 0.25
    more = lines(tmp_path / "more.jsonl", [{"target": 0, "structure": REFERENCE[0].as_dict()}, rows[0]])
    both = evaluate(samples, more, "--reference", reference, "--requested", out=tmp_path / "both")
    assert both["reference"]["rows"] == 3
    assert f"{more} has no candidate for 1 of 3 targets; they count as not matched." in both["notes"]
    everything = [{"target": row, "structure": structure.as_dict()} for row, structure in enumerate(REFERENCE)]
    whole = evaluate(
        lines(tmp_path / "all.jsonl", everything), "--reference", reference, "--requested", out=tmp_path / "whole"
    )
    assert whole["reference"]["rows"] == 4
    assert not any("asked for" in note for note in whole["notes"])


def test_samples_that_do_not_say_what_they_answer_have_no_requested_rows(tmp_path: Path, reference: Path) -> None:
    unlabelled = lines(tmp_path / "samples.jsonl", [{"structure": structure.as_dict()} for structure in REFERENCE])
    told = refused("evaluate", unlabelled, "--reference", reference, "--requested", "--out", tmp_path / "out")
    assert told.startswith(f"{unlabelled}: the file does not say which rows of the reference its samples answer")
    assert "give every row a 'target' or an id of the reference, or leave --requested out" in told
    beyond = lines(tmp_path / "beyond.jsonl", [{"target": 9, "structure": REFERENCE[0].as_dict()}])
    told = refused("evaluate", beyond, "--reference", reference, "--requested", "--out", tmp_path / "out")
    assert "answers target 9; the reference has rows 0 to 3" in told


def test_rows_without_targets_are_placed_and_lost_ones_are_counted(tmp_path: Path, reference: Path) -> None:
    made = [salt("Rb", "I", 4.4), salt("Cs", "Cl", 4.1), salt("K", "F", 3.0)]
    samples = lines(tmp_path / "samples.jsonl", [{"structure": structure.as_dict()} for structure in made])
    report = evaluate(samples, "--reference", reference, out=tmp_path / "out")
    assert "composition" in report["alignment"]
    assert report["unplaced"] == 1
    assert report["values"]["structural.match_rate@1"] == 0.5
    found = table(tmp_path / "out")
    assert [row["target"] for row in found] == ["0", "2", ""]
    assert "no row of the reference has its composition" in found[2]["reason"]


def test_what_was_read_is_counted_printed_and_doubted(
    tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of structures in the output and the report, the readers' notes, and where each sample stands."""

    def doubtful(path: Path) -> SampleFile:
        file = read_file(path)
        return attrs.evolve(file, notes=(f"{path.name} is odd.",))

    monkeypatch.setattr("kldm.evaluation.files.read_file", doubtful)
    monkeypatch.setattr("kldm.reading.reference.read_file", doubtful)
    names = ("a", "b", "c")
    rows = [{"id": name, "structure": s.as_dict()} for name, s in zip(names, REFERENCE[:3], strict=True)]
    known = lines(tmp_path / "known.jsonl", [*rows, {"id": "d", "structure": None, "reason": "lost"}])
    samples = lines(
        tmp_path / "samples.jsonl",
        [rows[2], {"id": "b", "structure": None, "reason": "no cell"}, {**rows[0], "id": "e"}],
    )
    out = tmp_path / "out"
    result = kldm("evaluate", samples, "--reference", known, "--train", reference, "--out", out)
    assert result.exit_code == 0, result.output
    told = result.output.splitlines()
    assert f"{samples}: 3 structures (1 failed)" in told
    assert f"{known}: 4 structures (1 failed)" in told
    assert f"{reference}: 4 structures" in told
    report = json.loads((out / "report.json").read_text())
    assert report["read"] == [
        {"file": str(samples), "structures": 3, "failed": 1},
        {"file": str(known), "structures": 4, "failed": 1},
        {"file": str(reference), "structures": 4, "failed": 0},
    ]
    assert Report.read(out / "report.json").about["read"] == report["read"]
    (judged,) = report["evaluation"].values()
    assert {"samples.jsonl is odd.", "known.jsonl is odd.", "reference.jsonl is odd."} <= set(judged["notes"])
    assert judged["alignment"] == "Rows are placed by their ids, which are those of the reference."
    found = {row["source"]: (row["target"], row["name"], row["reason"]) for row in table(out)}
    assert found == {
        f"{samples}:1": ("2", "c", ""),
        f"{samples}:2": ("1", "b", "no cell"),
        f"{samples}:3": ("", "", "no row of the reference has its composition or its id"),
    }
    kldm("evaluate", samples, "--metric", "validity.v1", "--out", tmp_path / "valid")
    assert [row["source"] for row in table(tmp_path / "valid")] == [f"{samples}:{n}" for n in (1, 2, 3)]


def test_ids_with_requested_and_k(tmp_path: Path, reference: Path) -> None:
    named = [{"id": f"x-{n}", "structure": s.as_dict()} for n, s in enumerate(REFERENCE)]
    known = lines(tmp_path / "known.jsonl", named)
    rows: list[dict[str, Any]] = [{**named[n], "id": f"x-{n}__{c}"} for n in (3, 1) for c in (1, 2)]
    rows[3]["structure"] = None
    samples = lines(tmp_path / "samples.jsonl", rows)
    judged = evaluate(samples, "--reference", known, "--requested", "--k", "1", out=tmp_path / "out")
    assert judged["values"]["structural.match_rate@1"] == 1.0
    assert (judged["requests"], judged["reference"]["rows"]) == (2, 2)
    assert [row["name"] for row in table(tmp_path / "out")] == ["x-1", "x-3"]
    whole = evaluate(samples, "--reference", known, out=tmp_path / "whole")
    assert whole["values"]["structural.match_rate@2"] == 0.5


def test_several_files_are_seeds(tmp_path: Path, reference: Path) -> None:
    files = []
    for seed, right in enumerate((4, 2)):
        made = [structure if row < right else ODD for row, structure in enumerate(REFERENCE)]
        rows = [{"target": row, "candidate": 0, "structure": structure.as_dict()} for row, structure in enumerate(made)]
        files.append(lines(tmp_path / f"seed{seed}.jsonl", rows))
    report = evaluate(*files, "--reference", reference, "--metric.rules", '["structural"]', out=tmp_path / "out")
    found = report["values"]
    assert found["structural.match_rate@1_mean"] == 0.75
    assert found["structural.match_rate@1_std"] == 0.25
    assert not any(name.startswith("full.") for name in found)
    generated = evaluate(*files, "--reference", reference, "--metric", "de_novo.v1", out=tmp_path / "dng")
    assert generated["values"]["struct_valid"] == 0.75
    assert generated["values"]["struct_valid_std"] == 0.25
    assert generated["definition"]["oxidation_states"] == "smact14"
    assert [seed["counts"]["valid"] for seed in generated["definition"]["seeds"]] == [4, 2]
    assert [seed["struct_valid"] for seed in generated["seeds"]] == [1.0, 0.5]
    assert generated["requests"] == 8
    assert "is given twice" in refused("evaluate", files[0], files[0], "--reference", reference)


def test_de_novo_generation(tmp_path: Path, reference: Path) -> None:
    made = [*REFERENCE[:2], ODD, salt("Na", "Cl", 3.5)]
    samples = lines(tmp_path / "samples.jsonl", [{"structure": structure.as_dict()} for structure in made])
    arguments = ("--reference", reference, "--metric", "de_novo.v1")
    keys = ("--metric.cutoffs", "perov_5", "--metric.draw", "2", "--metric.seed", "5")
    report = evaluate(samples, *arguments, *keys, out=tmp_path / "out")
    candidates = tuple(Candidate(row, 0, structure) for row, structure in enumerate(made))
    own = DeNovo(cutoffs="perov_5", draw=2, seed=5).measure(Samples(candidates, tuple(REFERENCE)))
    assert report["values"] == pytest.approx(dict(own.values))
    assert report["values"]["struct_valid"] == 0.75
    assert {"valid", "cov_recall", "cov_precision", "amsd_recall", "wdist_density", "wdist_num_elements"} <= set(
        report["values"]
    )
    assert report["definition"]["coverage"]["cutoffs"] == "perov_5"
    assert [row["struct_valid"] for row in table(tmp_path / "out")] == ["True", "True", "False", "True"]


def test_a_reference_that_was_trained_on_is_pointed_out(tmp_path: Path, reference: Path) -> None:
    samples = lines(tmp_path / "samples.jsonl", [{"target": 0, "structure": REFERENCE[0].as_dict()}])
    train = lines(
        tmp_path / "train.jsonl", [{"target": t, "structure": s.as_dict()} for t, s in enumerate(REFERENCE[1:3])]
    )
    report = evaluate(samples, "--reference", reference, "--train", train, out=tmp_path / "out")
    assert report["notes"][0].startswith("2 reference structures have the atoms and the cell of one in")


def test_a_folder_of_samples_is_a_file_of_samples(tmp_path: Path, reference: Path) -> None:
    from kldm.evaluation.results import write_samples

    write_samples(tmp_path / "made", [Candidate(row, 0, structure) for row, structure in enumerate(REFERENCE)])
    report = evaluate(tmp_path / "made", "--reference", reference, out=tmp_path / "out")
    assert report["values"]["structural.match_rate@1"] == 1
    own = MatchRate().measure(
        Samples(tuple(Candidate(row, 0, structure) for row, structure in enumerate(REFERENCE)), tuple(REFERENCE))
    )
    assert report["values"]["full.rmse@1"] == own.values["full.rmse@1"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--metric.rules", '["strict"]'], '--metric.rules.0: wants "structural" or "full", got "strict"'),
        (["--metric", "match_rate.v2"], "--metric: @metrics holds no 'match_rate.v2'; did you mean 'match_rate.v1'?"),
        (["--metric.rule", '["full"]'], "--metric.rule: unknown key; did you mean 'rules'?"),
        (["--metric.stol", "-1"], "--metric.stol: must be above 0 and at most 10, got -1"),
        (["--sampler.steps", "3"], "--sampler.steps: is no key of the metric"),
        (["--metric", "de_novo.v1", "--metric.cutoffs", "mp20"], "--metric.cutoffs: wants"),
        (["--metric", "de_novo.v1", "--metric.states", "icsd16"], "--metric.states: wants"),
        (["--metric", "stability.v1", "--metric.potential.@potentials", "emt.v2"], "did you mean 'emt.v1'?"),
        (["--workers", "0"], "--metric.workers: must be a number of processes, or -1 for all cores, got 0"),
        (["--time-limit", "0"], "--metric.time_limit: must be above 0"),
        (["--metric", "validity.v1", "--workers", "2"], "--workers: does not apply to validity.v1"),
        (["--reference", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--reference", "mp_20"], "write it like mp_20/test"),
        (["--reference", "mp_21/test"], "reference mp_21/test: 'mp_21' is neither"),
        (["--metric", "de_novo.v1", "--metric.seed", "-1"], "--metric.seed: must be at least 0, got -1"),
        (["--metric", "de_novo.v1", "--k", "2"], "--k: does not apply to de_novo.v1"),
        (["--metric", "de_novo.v1", "--requested"], "--requested: does not apply to de_novo.v1"),
    ],
    ids=str,
)
def test_mistakes_are_told_in_a_sentence(tmp_path: Path, reference: Path, arguments: list[str], told: str) -> None:
    samples = lines(tmp_path / "samples.jsonl", [{"target": 0, "structure": REFERENCE[0].as_dict()}])
    given: list[str | Path] = [] if "--reference" in arguments else ["--reference", reference]
    before = sorted(tmp_path.iterdir())
    assert told in refused("evaluate", samples, *given, *arguments)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("metric", ["match_rate.v1", "de_novo.v1"])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, reference: Path, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (MatchRate, DeNovo):
        monkeypatch.setattr(kind, "measure", lambda *_: pytest.fail("there was work"))
    samples = lines(tmp_path / "samples.jsonl", [{"target": 0, "structure": REFERENCE[0].as_dict()}])
    told = refused("evaluate", samples, "--reference", reference, "--metric", metric, "--out", samples / "out")
    assert f"{samples / 'out'}: the folder cannot be created" in told
    assert "choose another folder with --out" in told
