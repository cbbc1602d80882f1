"""`kldm evaluate` on files of any origin: what is written, and that it agrees with the metrics themselves."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from kldm.interfaces import Candidate, Samples
from kldm.metrics import DeNovo, MatchRate
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
    result = kldm("evaluate", *arguments, "--out", out)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


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
    report = evaluate(samples, "--reference", reference, "--task", "csp", out=tmp_path / "out")
    assert report["task"] == "csp"
    assert report["reference"] == {"name": str(reference), "rows": 4, "failed": 0, "whole": False}
    assert (report["requests"], report["not_built"]) == (5, 1)
    for rule in ("structural", "full"):
        assert report["csp"][rule]["match_rate@1"] == 0.25
        assert report["csp"][rule]["match_rate@2"] == 0.5
        assert report["csp"][rule]["rmse@2"] == pytest.approx(0, abs=1e-6)
        assert report["csp"][rule]["crmse@1"] == pytest.approx(0.375, abs=1e-6)
        assert report["csp"][rule]["share_below_0.1@2"] == 0.5
    assert report["csp"]["METRe"] == 0.25
    assert report["csp"]["cRMSE"] == pytest.approx(0.375, abs=1e-6)
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
    assert "match_rate@2" not in only["csp"]["structural"]
    assert only["csp"]["structural"]["match_rate@1"] == 0.25
    assert any("beyond the first 1" in note for note in only["notes"])


def test_a_selection_is_made_or_taken_from_the_samples(tmp_path: Path, reference: Path) -> None:
    """Of target 0 two of three are right, candidate 0 is not; target 1 has an answer alone."""
    other = Structure(Lattice.tetragonal(4.1, 9.0), ["Cs", "Cl"], CORNERS)
    made = [other, salt("Cs", "Cl", 4.2), salt("Cs", "Cl", 4.0)]
    rows: list[dict[str, Any]] = [
        {"target": 0, "candidate": number, "structure": one.as_dict()} for number, one in enumerate(made)
    ]
    rows.append({"target": 1, "candidate": 0, "structure": REFERENCE[1].as_dict()})
    plain = lines(tmp_path / "plain.jsonl", rows)
    report = evaluate(plain, "--reference", reference, "--select", "consensus", out=tmp_path / "out")
    for rule in ("structural", "full"):
        found = report["csp"][rule]
        assert (found["match_rate@1"], found["match_rate@selected_of_3"], found["match_rate@3"]) == (0.25, 0.5, 0.5)
    assert [row["selected"] for row in table(tmp_path / "out")] == ["False", "True", "False", "True"]
    for row in (0, 3):
        rows[row]["selected"] = True
    marked = lines(tmp_path / "marked.jsonl", rows)
    report = evaluate(marked, "--reference", reference, out=tmp_path / "marked")
    assert report["csp"]["structural"]["match_rate@selected_of_3"] == 0.25
    assert "mark as selected" in report["definitions"]["csp"]["selected"]
    fewer = evaluate(marked, "--reference", reference, "--k", "2", out=tmp_path / "fewer")
    assert not any("selected" in name for name in fewer["csp"]["structural"])
    assert any("chosen among more candidates" in note for note in fewer["notes"])
    again = evaluate(marked, "--reference", reference, "--k", "2", "--select", "consensus", out=tmp_path / "again")
    assert again["csp"]["structural"]["match_rate@selected_of_2"] == 0.25  # of two that differ, the one with more room
    rows[0]["selected"] = "yes"
    told = refused("evaluate", lines(tmp_path / "odd.jsonl", rows), "--reference", reference)
    assert "odd.jsonl:1: 'selected' must be true or false" in told


def test_seeds_are_selected_from_too(tmp_path: Path, reference: Path) -> None:
    files = []
    for seed, right in enumerate((0, 4, 4)):
        made = [one if row < right else ODD for row, one in enumerate(REFERENCE)]
        rows: list[dict[str, Any]] = [
            {"target": row, "candidate": 0, "structure": one.as_dict(), "selected": True}
            for row, one in enumerate(made)
        ]
        files.append(lines(tmp_path / f"seed{seed}.jsonl", rows))
    arguments = ("--reference", reference, "--rules", "structural")
    plain = evaluate(*files, *arguments, out=tmp_path / "plain")["csp"]["structural"]
    assert not any("selected" in name for name in plain)
    found = evaluate(*files, *arguments, "--select", "consensus", out=tmp_path / "out")["csp"]["structural"]
    assert (found["match_rate@1"], found["match_rate@selected_of_3"]) == (0.0, 1.0)
    assert found["match_rate@1_mean"] == pytest.approx(2 / 3)


def test_the_rows_that_were_asked_for_are_judged_alone(tmp_path: Path, reference: Path) -> None:
    """Of four rows two were asked for, with one success."""
    rows: list[dict[str, Any]] = [
        {"target": 3, "candidate": 0, "structure": REFERENCE[3].as_dict()},
        {"target": 1, "candidate": 0, "structure": None, "reason": "no cell"},
    ]
    samples = lines(tmp_path / "samples.jsonl", rows)
    report = evaluate(samples, "--reference", reference, "--requested", out=tmp_path / "out")
    assert report["reference"] == {"name": str(reference), "rows": 2, "failed": 0, "whole": False}
    assert report["csp"]["structural"]["match_rate@1"] == 0.5
    assert report["csp"]["METRe"] == 0.5
    assert "2 of 4 rows of the reference are judged, those that were asked for." in report["notes"]
    assert not any("no candidate" in note for note in report["notes"])
    assert [(row["target"], row["name"], row["formula"]) for row in table(tmp_path / "out")] == [
        ("1", "1", ""),
        ("3", "3", "AlN"),
    ]
    usual = evaluate(samples, "--reference", reference, out=tmp_path / "usual")
    assert usual["csp"]["structural"]["match_rate@1"] == 0.25
    more = lines(tmp_path / "more.jsonl", [{"target": 0, "structure": REFERENCE[0].as_dict()}, rows[0]])
    both = evaluate(samples, more, "--reference", reference, "--requested", out=tmp_path / "both")
    assert both["reference"]["rows"] == 3
    assert f"{more} has no candidate for 1 of 3 targets; they count as not matched." in both["notes"]
    everything = [{"target": row, "structure": one.as_dict()} for row, one in enumerate(REFERENCE)]
    whole = evaluate(
        lines(tmp_path / "all.jsonl", everything), "--reference", reference, "--requested", out=tmp_path / "whole"
    )
    assert whole["reference"]["rows"] == 4
    assert not any("asked for" in note for note in whole["notes"])


def test_samples_that_do_not_say_what_they_answer_have_no_requested_rows(tmp_path: Path, reference: Path) -> None:
    unlabelled = lines(tmp_path / "samples.jsonl", [{"structure": one.as_dict()} for one in REFERENCE])
    told = refused("evaluate", unlabelled, "--reference", reference, "--requested", "--out", tmp_path / "out")
    assert told.startswith(f"{unlabelled}: the file does not say which rows of the reference its samples answer")
    assert "give every row a 'target', or leave --requested out" in told
    beyond = lines(tmp_path / "beyond.jsonl", [{"target": 9, "structure": REFERENCE[0].as_dict()}])
    told = refused("evaluate", beyond, "--reference", reference, "--requested", "--out", tmp_path / "out")
    assert "answers target 9; the reference has rows 0 to 3" in told


def test_rows_without_targets_are_placed_and_lost_ones_are_counted(tmp_path: Path, reference: Path) -> None:
    made = [salt("Rb", "I", 4.4), salt("Cs", "Cl", 4.1), salt("K", "F", 3.0)]
    samples = lines(tmp_path / "samples.jsonl", [{"structure": one.as_dict()} for one in made])
    report = evaluate(samples, "--reference", reference, out=tmp_path / "out")
    assert "composition" in report["alignment"]
    assert report["unplaced"] == 1
    assert report["csp"]["structural"]["match_rate@1"] == 0.5
    found = table(tmp_path / "out")
    assert [row["target"] for row in found] == ["0", "2", ""]
    assert "no row of the reference has its composition" in found[2]["reason"]


def test_several_files_are_seeds(tmp_path: Path, reference: Path) -> None:
    files = []
    for seed, right in enumerate((4, 2)):
        made = [one if row < right else ODD for row, one in enumerate(REFERENCE)]
        rows = [{"target": row, "candidate": 0, "structure": one.as_dict()} for row, one in enumerate(made)]
        files.append(lines(tmp_path / f"seed{seed}.jsonl", rows))
    report = evaluate(*files, "--reference", reference, "--rules", "structural", out=tmp_path / "out")
    found = report["csp"]["structural"]
    assert found["match_rate@1_mean"] == 0.75
    assert found["match_rate@1_std"] == 0.25
    assert "full" not in report["csp"]
    generated = evaluate(*files, "--reference", reference, "--task", "dng", out=tmp_path / "dng")
    assert generated["dng"]["struct_valid"] == 0.75
    assert generated["dng"]["struct_valid_std"] == 0.25
    assert [one["struct_valid"] for one in generated["seeds"]] == [1.0, 0.5]
    assert generated["requests"] == 8
    assert "is given twice" in refused("evaluate", files[0], files[0], "--reference", reference)


def test_de_novo_generation(tmp_path: Path, reference: Path) -> None:
    made = [*REFERENCE[:2], ODD, salt("Na", "Cl", 3.5)]
    samples = lines(tmp_path / "samples.jsonl", [{"structure": one.as_dict()} for one in made])
    arguments = ("--reference", reference, "--task", "dng", "--cutoffs", "perov_5", "--draw", "2", "--seed", "5")
    report = evaluate(samples, *arguments, out=tmp_path / "out")
    candidates = tuple(Candidate(row, 0, one) for row, one in enumerate(made))
    own = DeNovo(cutoffs="perov_5", draw=2, seed=5).measure(Samples(candidates, tuple(REFERENCE)))
    assert report["dng"] == pytest.approx(dict(own.values))
    assert report["dng"]["struct_valid"] == 0.75
    assert {"valid", "cov_recall", "cov_precision", "amsd_recall", "wdist_density", "wdist_num_elements"} <= set(
        report["dng"]
    )
    assert report["definitions"]["dng"]["coverage"]["cutoffs"] == "perov_5"
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

    write_samples(tmp_path / "made", [Candidate(row, 0, one) for row, one in enumerate(REFERENCE)])
    report = evaluate(tmp_path / "made", "--reference", reference, out=tmp_path / "out")
    assert report["csp"]["structural"]["match_rate@1"] == 1
    own = MatchRate().measure(
        Samples(tuple(Candidate(row, 0, one) for row, one in enumerate(REFERENCE)), tuple(REFERENCE))
    )
    assert report["csp"]["full"]["rmse@1"] == own.values["full.rmse@1"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rules", "strict"], '--rules: wants "structural" or "full", got "strict"'),
        (["--task", "dng", "--cutoffs", "mp20"], "cutoffs"),
        (["--task", "dng", "--states", "icsd16"], "--states: wants"),
        (["--workers", "0"], "workers"),
        (["--time-limit", "0"], "--time-limit: must be"),
        (["--reference", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--reference", "mp_20"], "write it like mp_20/test"),
        (["--reference", "mp_21/test"], "reference mp_21/test: 'mp_21' is neither"),
        (["--task", "dng", "--draw", "2", "--seed", "-1"], "seed is -1; give a whole number from 0"),
        (["--task", "dng", "--k", "2"], "--k: says nothing with --task dng; leave it out, or say --task csp"),
        (["--task", "dng", "--requested"], "--requested: says nothing with --task dng"),
        (["--task", "dng", "--select", "consensus"], "--select: says nothing with --task dng"),
        (["--draw", "1000"], "--draw: says nothing with --task csp; leave it out, or say --task dng"),
        (["--task", "csp", "--seed", "0"], "--seed: says nothing with --task csp"),
    ],
    ids=str,
)
def test_mistakes_are_told_in_a_sentence(tmp_path: Path, reference: Path, arguments: list[str], told: str) -> None:
    samples = lines(tmp_path / "samples.jsonl", [{"target": 0, "structure": REFERENCE[0].as_dict()}])
    given: list[str | Path] = [] if "--reference" in arguments else ["--reference", reference]
    before = sorted(tmp_path.iterdir())
    assert told in refused("evaluate", samples, *given, *arguments)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("task", ["csp", "dng"])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, reference: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for metric in (MatchRate, DeNovo):
        monkeypatch.setattr(metric, "measure", lambda *_: pytest.fail("there was work"))
    samples = lines(tmp_path / "samples.jsonl", [{"target": 0, "structure": REFERENCE[0].as_dict()}])
    told = refused("evaluate", samples, "--reference", reference, "--task", task, "--out", samples / "out")
    assert f"{samples / 'out'}: no folder can be made here" in told
    assert "choose another folder with --out" in told
