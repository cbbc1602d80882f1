"""Reports side by side: labels, what published figures may stand beside them, and what differs in definition."""

import csv
import json
import os
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from kldm.data.sources import SOURCES
from kldm.errors import KldmError
from kldm.evaluation.comparison import Comparison, compare
from kldm.evaluation.published import Figure, FigureRule, published, whole_splits

MP_20 = {"name": "mp_20/test", "rows": 9046, "whole": True}
MATCHER = {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0, "longest_edge": None}
CDVAE = {"oxidation_states": "smact14", "legacy": True, "draw": None, "coverage": {"cutoffs": "mp_20"}}


def csp(**changes: Any) -> dict[str, Any]:
    """A judgement of one candidate for each row of MP-20, under both rules."""
    return {
        "reference": MP_20,
        "requests": 9046,
        "not_built": 3,
        "csp": {
            "structural": {"match_rate@1": 0.65432, "rmse@1": 0.05678, "share_below_0.1@1": 0.512},
            "full": {"match_rate@1": 0.5, "rmse@1": None},
            "METRe": 0.7,
            "cRMSE": 0.2,
        },
        "definitions": {"csp": MATCHER},
        "notes": [],
        "libraries": {"pymatgen": "2026.10.24"},
    } | changes


def dng(**changes: Any) -> dict[str, Any]:
    return {
        "reference": MP_20,
        "requests": 10000,
        "not_built": 0,
        "dng": {"comp_valid": 0.86, "cov_recall": 0.99, "amsd_recall": 0.1234, "wdist_density": 0.4},
        "definitions": {"dng": CDVAE},
        "notes": ["generated structures are all alike"],
    } | changes


def saved(folder: Path, report: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def compared(tmp_path: Path, *reports: Any) -> Comparison:
    return compare([saved(tmp_path / "abc"[number], report) for number, report in enumerate(reports)])


def cells(text: str, label: str) -> list[str]:
    """The cells of the first line that begins with ``label``."""
    line = next(line for line in text.splitlines() if line.strip().startswith(f"{label}  "))
    return [cell.strip() for cell in line.strip().split("  ") if cell.strip()][1:]


def beside(comparison: Comparison, system: str, rule: str) -> dict[str, float]:
    found = [f.values for f in comparison.published if (f.system, f.rule) == (system, rule)]
    return {name: value for values in found for name, value in values.items()}


def test_values_stand_side_by_side(tmp_path: Path) -> None:
    wide = csp(requests=180920, not_built=None)
    wide["csp"] = {
        "structural": {"match_rate@1": 0.6, "match_rate@1_mean": 0.61, "match_rate@1_std": 0.002, "match_rate@20": 0.8}
    }
    text = compared(tmp_path, csp(), wide).text()
    assert cells(text, "match_rate.v1") == ["a", "b"]
    assert cells(text, "reference") == ["mp_20/test", "mp_20/test"]
    assert cells(text, "requests") == ["9046", "180920"]
    assert cells(text, "not built") == ["3", "-"]
    assert cells(text, "structural match_rate@1") == ["65.4 %", "60.0 %"]
    assert cells(text, "structural match_rate@1_mean") == ["-", "61.0 ± 0.2 %"]
    assert cells(text, "structural rmse@1") == ["0.0568", "-"]
    assert cells(text, "structural share_below_0.1@1") == ["51.2 %", "-"]
    assert cells(text, "full match_rate@1") == ["50.0 %", "-"]
    assert cells(text, "full rmse@1") == ["none", "-"]
    assert cells(text, "METRe") == ["70.0 %", "-"]
    assert "_std" not in text
    # a value that only the second report has is among those of its rule
    assert text.index("structural match_rate@20") < text.index("full match_rate@1")


def test_what_is_selected_stands_beside_plain_figures_and_published_ones_do_not(tmp_path: Path) -> None:
    one, other = (
        csp(
            csp={"structural": {"match_rate@1": 0.6, "match_rate@10": 0.8, "match_rate@selected_of_10": 0.65}},
            definitions={"csp": MATCHER | {"selected": rule}},
        )
        for rule in ("consensus: most matches", "their own marks")
    )
    found = compared(tmp_path, csp(), one, other)
    assert cells(found.text(), "structural match_rate@1") == ["65.4 %", "60.0 %", "60.0 %"]
    assert cells(found.text(), "structural match_rate@selected_of_10") == ["-", "65.0 %", "65.0 %"]
    assert not any("selected" in name for figure in found.published for name in figure.values)
    told = [warning for warning in found.warnings if "selection" in warning]
    assert told == [
        'match_rate.v1: the rules of selection differ: selected "consensus: most matches" (b); '
        'selected "their own marks" (c)'
    ]


def test_a_run_has_a_column_for_each_set_of_samples(tmp_path: Path) -> None:
    report = {"recipe": "x0", "evaluation": {"test": csp(), "test_untrained": csp()}}
    run, single = saved(tmp_path / "run", report), saved(tmp_path / "single", {"evaluation": {"test": csp()}})
    names = [column.name for column in compare([run, single]).columns]
    assert names == ["run/test", "run/test_untrained", "single"]


def test_equal_names_become_paths(tmp_path: Path) -> None:
    run = {"evaluation": {"test": csp(), "train": csp()}}
    paths = [saved(tmp_path / place / "out", run) for place in "ab"] + [saved(tmp_path / "value", csp())]
    names = [column.name for column in compare(paths).columns]
    files = [path / "report.json" for path in paths]
    assert names[:4] == [f"{file}/{label}" for file in files[:2] for label in ("test", "train")]
    assert names[4] == str(files[2])  # "value" is a heading of comparison.csv
    other = tmp_path / "mine.json"
    other.write_text(json.dumps(csp()))
    assert compare([other]).columns[0].name == "mine"


def test_published_figures_keep_their_rule(tmp_path: Path) -> None:
    found = compared(tmp_path, csp())
    assert beside(found, "MCFlow", "structural") == {"match_rate@1": 0.7038}
    assert beside(found, "MCFlow", "full") == {"match_rate@1": 0.6408, "rmse@1": 0.0561}
    assert beside(found, "KLDM-x0 PC", "unstated") == {"match_rate@1": 0.6583, "rmse@1": 0.0517}
    assert beside(found, "MaskGXT", "unstated") == {"METRe": 0.748}
    assert {figure.dataset for figure in found.published} == {"mp_20"}
    assert not any(name.endswith("@20") for figure in found.published for name in figure.values)
    assert found.reasons == ()
    text = found.text()
    titles = ["rule: structural", "rule: full", "rule not stated"]
    assert sorted(titles, key=text.index) == titles
    assert cells(text[text.index("rule not stated") :], "KLDM-x0 PC")[:2] == ["65.8 ± 0.2 %", "0.0517 ± 0.0010"]
    assert "Miller" in text


def test_only_rules_that_a_report_has(tmp_path: Path) -> None:
    structural = csp(csp={"structural": {"match_rate@1": 0.6, "match_rate@20": 0.8}})
    found = compared(tmp_path, structural)
    assert {figure.rule for figure in found.published} == {"structural", "unstated"}
    assert beside(found, "KLDM-eps EM", "unstated") == {"match_rate@1": 0.6172, "match_rate@20": 0.8368}
    row = cells(found.text(), "KLDM-eps EM")
    assert row[:2] == ["61.7 ± 0.2 %", "83.7 %"]  # one row for both k


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reference": MP_20 | {"rows": 100, "whole": False}}, "100 rows of mp_20/test, and published .* all 9046"),
        ({"reference": MP_20 | {"rows": 9000}}, "9000 rows of mp_20/test"),
        ({"reference": MP_20 | {"name": "mp_20/val"}}, "against mp_20/val"),
        (
            {"reference": {"name": "mine.csv", "rows": 9046, "whole": True}},
            "no published figures for match_rate.v1 on mine.csv",
        ),
        ({"reference": {}}, "no published figures for match_rate.v1 on an unnamed reference"),
        ({"definitions": {"csp": MATCHER | {"stol": 0.3}}}, r"of match_rate.v1 are by another definition \(stol 0.5\)"),
        ({"definitions": {}}, r"by another definition \(ltol 0.3, stol 0.5, angle_tol 10\)"),
    ],
)
def test_no_figure_beside_another_definition(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    found = compared(tmp_path, csp(**changes))
    assert found.published == ()
    (sentence,) = found.reasons
    assert sentence.startswith("a: ")
    assert re.search(reason, sentence)
    assert f"not compared with published figures: {sentence}" in found.text()


def test_values_that_no_figure_compares_with(tmp_path: Path) -> None:
    """Nobody publishes k = 10; the rest stays comparable, METRe too, which is over the first candidates."""
    ten = csp(requests=90460)
    ten["csp"]["structural"] |= {"match_rate@10": 0.7}
    found = compared(tmp_path, ten)
    assert beside(found, "MCFlow", "structural") == {"match_rate@1": 0.7038}
    assert beside(found, "MaskGXT", "unstated") == {"METRe": 0.748}
    assert found.reasons == ("a: there are no published figures for k = 10",)


def test_de_novo_figures_follow_their_definitions(tmp_path: Path) -> None:
    found = compared(tmp_path, dng())
    assert beside(found, "DiffCSP", "cdvae") == {"comp_valid": 0.8325, "cov_recall": 0.9971, "wdist_density": 0.3502}
    assert beside(found, "Crystalite", "unstated") == {"wdist_density": 0.046}
    text = found.text()
    assert cells(text, "comp_valid") == ["86.0 %"]
    assert cells(text, "amsd_recall") == ["0.1234"]
    assert "note: a: generated structures are all alike" in text

    today = compared(tmp_path / "today", dng(definitions={"dng": CDVAE | {"legacy": False}}))
    assert beside(today, "DiffCSP", "cdvae") == {"cov_recall": 0.9971, "wdist_density": 0.3502}
    assert len(today.reasons) == 1

    other = compared(tmp_path / "other", dng(definitions={"dng": CDVAE | {"coverage": {"cutoffs": "perov_5"}}}))
    assert beside(other, "DiffCSP", "cdvae") == {"comp_valid": 0.8325, "wdist_density": 0.3502}
    assert len(other.reasons) == 1


TABLE_2: dict[str, Any] = {
    "potential": {"label": "mattersim-v1.0.0-1M.pth", "name": "mattersim.v1"},
    "relaxation": {"fmax": 0.05, "cell": "exp", "max_steps": 500},
    "hull": {"names": ["alex_mp.json.gz"], "entries": 845997, "corrections": "mp2020"},
    "matcher": {"name": "disordered"},
    "known": {"structures": 845997},
}


def stability(**definition: Any) -> dict[str, Any]:
    values = {"n_failed": 3, "avg_e_above_hull": 0.2, "stable_100meV": 0.5, "sun_100meV": 0.2, "stable_0meV": 0.1}
    return {
        "reference": {"name": "alex_mp.json.gz", "rows": 845997, "whole": False},
        "requests": 1000,
        "not_built": 0,
        "stability": values,
        "definitions": {"stability": TABLE_2 | definition},
        "notes": [],
    }


def test_figures_of_stability_want_their_potential_and_hull(tmp_path: Path) -> None:
    found = compared(tmp_path, stability())
    expected = {"avg_e_above_hull": 0.155, "stable_100meV": 0.5921, "sun_100meV": 0.1852}
    assert beside(found, "KLDM-x0 D", "mattergen") == expected
    text = found.text()
    assert cells(text, "stable_100meV") == ["50.0 %"]
    assert cells(text, "n_failed") == ["3"]
    assert cells(text, "KLDM-x0 D")[:3] == ["0.1550 ± 0.0100", "59.2 ± 0.1 %", "18.5 ± 0.1 %"]


@pytest.mark.parametrize(
    "changes",
    [
        {"potential": {"label": "CHGNet 0.3.0", "name": "chgnet.v1"}},
        {"relaxation": {"fmax": 0.05, "cell": "exp", "max_steps": 0}},
        {"relaxation": {"fmax": 0.05, "cell": "fixed", "max_steps": 500}},
        {"hull": {"names": ["mine.json"], "sha256": ["1"], "entries": 3, "corrections": "mp2020"}},
        {"hull": {**TABLE_2["hull"], "corrections": "none"}},
        {"matcher": {"name": "ordered"}},
        {"known": {"structures": 27136}},
    ],
)
def test_no_figure_of_stability_beside_another_definition(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = compared(tmp_path, stability(**changes), stability())
    assert not compared(tmp_path / "alone", stability(**changes)).published
    (reason,) = found.reasons
    assert reason.startswith("a: published figures of stability.v1 are by another definition (")
    assert len(found.warnings) == 1
    assert "differ: " in found.warnings[0]


def test_a_data_set_without_metre(tmp_path: Path) -> None:
    """dng on MPTS-52 has no figures at all, csp on it none of METRe."""
    reference = {"name": "mpts_52/test", "rows": 8096, "whole": True}
    found = compared(tmp_path, csp(reference=reference), dng(reference=reference))
    assert beside(found, "FlowMM", "full") == {"match_rate@1": 0.1754, "rmse@1": 0.1726}
    assert found.reasons == ("b: there are no published figures for de_novo.v1 on mpts_52/test",)


def test_differences_among_reports(tmp_path: Path) -> None:
    twin = csp(definitions={"csp": MATCHER | {"angle_tol": 10}})
    assert compared(tmp_path / "equal", csp(), twin, dng()).warnings == ()
    other = csp(
        reference=MP_20 | {"rows": 50, "whole": False},
        definitions={"csp": MATCHER | {"longest_edge": 40}},
        libraries={"pymatgen": "2025.1.24", "torch": "2"},
    )
    other["csp"]["structural"]["match_rate@20"] = 0.9
    assert compared(tmp_path, csp(), csp(), other).warnings == (
        "match_rate.v1: the references differ: mp_20/test (a, b); mp_20/test, 50 rows (c)",
        "match_rate.v1: the numbers of candidates differ: k = 1 (a, b); k = 1, 20 (c)",
        "match_rate.v1: the longest edges allowed differ: longest_edge null (a, b); longest_edge 40 (c)",
        "the versions of pymatgen differ: 2026.10.24 (a, b); 2025.1.24 (c)",
    )
    versions = csp(definitions={"csp": MATCHER | {"versions": {"pymatgen": "2025.1.24"}}})
    assert compared(tmp_path / "versions", csp(), versions).warnings == (
        "the versions of pymatgen differ: 2026.10.24 (a); 2025.1.24 (b)",
    )
    icsd = dng(requests=500, definitions={"dng": {"oxidation_states": "icsd24", "legacy": False, "draw": 1000}})
    assert compared(tmp_path / "dng", dng(), icsd).warnings == (
        "de_novo.v1: the numbers of structures differ: 10000 (a); 500 (b)",
        'de_novo.v1: the sets of oxidation states differ: oxidation_states "smact14", legacy true (a); '
        'oxidation_states "icsd24", legacy false (b)',
        'de_novo.v1: the coverage cutoffs differ: coverage.cutoffs "mp_20" (a); coverage.cutoffs not stated (b)',
        "de_novo.v1: the numbers drawn for property distances differ: draw null (a); draw 1000 (b)",
    )


def test_a_metric_of_the_user(tmp_path: Path) -> None:
    """A metric that nobody else knows has its own table, its numbers as they are."""
    judged = csp(mine={"valid": {"share": 0.5}, "nothing": float("nan")})
    judged["definitions"] |= {"mine": {}}
    text = compared(tmp_path, judged).text()
    assert cells(text, "mine") == ["a"]
    assert cells(text, "valid share") == ["0.5000"]
    assert cells(text, "nothing") == ["none"]


def test_a_pipe_or_a_device_is_no_report(tmp_path: Path) -> None:
    """Reading them may never end."""
    os.mkfifo(tmp_path / "report.json")
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(KldmError, match="no regular file"):
            compare([path])


def new(sections: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A report as it is written now, of one set of samples."""
    return {
        "libraries": {},
        "evaluation": {"test": {"reference": MP_20, "requests": 9046, "not_built": 3, "metrics": sections} | changes},
    }


def test_sections_of_one_metric_stand_in_one_table(tmp_path: Path) -> None:
    """Whatever they are called, in reports old and new; two of one report are told apart."""
    terms = {"answers": True, "agree": {"tolerances": ["ltol", "stol", "angle_tol"]}, "shares": ["match_rate"]}
    loose, strict = (
        {
            "metric": "match_rate.v1",
            "values": {"structural.match_rate@1": share},
            "definition": MATCHER | {"stol": stol},
            "terms": terms,
        }
        for share, stol in ((0.6, 0.5), (0.3, 0.1))
    )
    text = compared(tmp_path, csp(), new({"loose": loose, "strict": strict}), new({"mine": loose})).text()
    assert cells(text, "match_rate.v1") == ["a", "b (loose)", "b (strict)", "c"]
    assert cells(text, "structural match_rate@1") == ["65.4 %", "60.0 %", "30.0 %", "60.0 %"]
    assert "the tolerances differ: ltol 0.3, stol 0.5, angle_tol 10 (a, b (loose), c); ltol 0.3, stol 0.1" in text
    assert "b (strict): published figures of match_rate.v1 are by another definition (stol 0.5)" in text
    assert "published: match_rate.v1, mp_20/test" in text


def test_terms_come_from_the_reports(tmp_path: Path) -> None:
    """A metric that is registered nowhere: what it says in its reports decides on percent, warnings and what is
    compared only where it is stated."""
    terms = {"agree": {"parts": ("part.",), "choices": ("choice?",)}, "shares": ("good",)}
    one, other, third = (
        new({"mine": {"metric": "mine.v1", "terms": terms, "values": {"good": 0.5, "size": 2}, "definition": part}})
        for part in ({"part": {"a": 1, "b": 2}}, {"part": {"a": 1, "b": 3}, "choice": "x"}, {"part": {"a": 1, "b": 2}})
    )
    found = compared(tmp_path, one, other, third)
    assert cells(found.text(), "good") == ["50.0 %"] * 3
    assert cells(found.text(), "size") == ["2.0000"] * 3
    assert found.warnings == ("mine.v1: the parts differ: part.a 1, part.b 2 (a, c); part.a 1, part.b 3 (b)",)
    assert found.reasons == ()


def test_a_deviation_stands_beside_its_mean(tmp_path: Path) -> None:
    values = {"struct_valid": 0.75, "struct_valid_std": 0.25, "loose_std": 0.1, "wdist_density": 0.5}
    text = compared(tmp_path, dng(dng=values)).text()
    assert cells(text, "struct_valid") == ["75.0 ± 25.0 %"]
    assert cells(text, "loose_std") == ["0.1000"]
    assert "struct_valid_std" not in text


def test_files(tmp_path: Path) -> None:
    found = compared(tmp_path, csp(), csp(csp={"structural": {"match_rate@1": 0.25}}))
    found.write(tmp_path / "out")
    with (tmp_path / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"metric": "match_rate.v1", "value": "structural.match_rate@1", "a": "0.65432", "b": "0.25"}
    assert rows[4] == {"metric": "match_rate.v1", "value": "full.rmse@1", "a": "", "b": ""}
    with (tmp_path / "out" / "published.csv").open() as file:
        records = list(csv.DictReader(file))
    kldm = [r for r in records if r["system"] == "KLDM-x0 PC" and r["value"] == "match_rate@1"]
    assert [(r["number"], r["std"], r["rule"]) for r in kldm] == [("0.6583", "0.002", "unstated")]
    assert all(record["source"] for record in records)
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [column["name"] for column in content["columns"]] == ["a", "b"]
    assert content["columns"][0]["judgement"]["metrics"]["csp"]["definition"] == MATCHER
    assert len(content["published"]) == len(found.published)


def test_a_missing_report(tmp_path: Path) -> None:
    with pytest.raises(KldmError, match=r"report\.json: there is no report"):
        compare([tmp_path])
    with pytest.raises(KldmError, match="nothing to compare"):
        compare([])


def test_a_report_given_twice(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", csp())
    with pytest.raises(KldmError, match="given twice"):
        compare([folder, folder / ".." / "run" / "report.json"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"csp": {', "not JSON"),
        ("\udcff", "not JSON"),
        ("[]", "not a report of kldm evaluate or kldm run"),
        ("{}", "not a report .*no values of any metric"),
        ('{"csp": 3}', "not a report .*values: wants section of float"),
        ('{"csp": {}, "definitions": []}', "not a report .*definitions"),
        ('{"csp": {}, "notes": "none"}', "not a report .*notes"),
        ('{"csp": {}, "reference": {"rows": "all"}}', r"not a report .*reference\.rows"),
        ('{"evaluation": {"test": {"metrics": {"csp": {"values": {}}}}}}', r"not a report .*csp\.metric: missing"),
        ('{"evaluation": {"test": {"metrics": {"csp": {"metric": "m", "values": {}, "x": 1}}}}}', "unknown key"),
        ('{"evaluation": {"test": {"metrics": []}}}', "not a report .*metrics"),
        ('{"evaluation": {"test": null}}', r"not a report .*evaluation\.test"),
        ('{"evaluation": []}', "not a report .*evaluation"),
        ('{"evaluation": {}}', "not evaluated"),
        ('{"csp": {"full": {"rmse@1": "low"}}}', r'values\.full\.rmse@1: wants float or null, got "low"'),
        ('{"csp": {"METRe": true}}', r"values\.METRe: wants float or null, got true"),
    ],
)
def test_what_is_not_a_report(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(KldmError, match=problem) as caught:
        compare([file])
    assert caught.value.place == str(file)


@pytest.mark.parametrize("figure", published(), ids=lambda f: f"{f.system}-{f.dataset}-{f.rule}")
def test_records(figure: Figure) -> None:
    assert figure.system
    assert figure.source
    assert figure.dataset in SOURCES
    assert figure.dataset in whole_splits()
    assert figure.split == "test"
    assert figure.rule in get_args(FigureRule)
    assert figure.values
    assert figure.std.keys() <= figure.values.keys()
    for name, value in figure.values.items():
        # no published rmse reaches the matcher's limit, and only d_elem of CDVAE and the like exceed 1
        limit = 0.5 if name.startswith("rmse@") else 2.0 if name.startswith("wdist") else 1.0
        assert 0 < value <= limit
        assert 0 <= figure.std.get(name, 0) < 0.1 * value
    if figure.metric == "match_rate.v1":
        assert figure.k in (1, 20)
        assert figure.rule in ("structural", "full", "unstated")
    else:
        assert figure.k is None
        assert figure.rule in (("mattergen",) if figure.metric == "stability.v1" else ("cdvae", "unstated"))


def test_no_value_is_recorded_twice() -> None:
    keys = [(f.system, f.metric, f.dataset, f.rule, name) for f in published() for name in f.values]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("system", "dataset", "rule", "values"),
    [
        ("KLDM-x0 PC", "mp_20", "unstated", {"match_rate@1": 0.6583, "rmse@1": 0.0517}),
        ("KLDM-x0 PC", "mp_20", "unstated", {"match_rate@20": 0.8018, "rmse@20": 0.0453}),
        ("KLDM-eps PC", "mpts_52", "unstated", {"match_rate@20": 0.3981, "rmse@20": 0.1462}),
        ("KLDM-eps EM", "carbon_24", "unstated", {"match_rate@1": 0.1804, "rmse@1": 0.3188}),
        ("CDVAE", "perov_5", "full", {"match_rate@20": 0.8851, "rmse@20": 0.0464}),
        ("Crystalite", "mpts_52", "full", {"match_rate@1": 0.315, "rmse@1": 0.0701}),
        (
            "KLDM-eps",
            "mp_20",
            "unstated",
            {
                "struct_valid": 0.9988,
                "comp_valid": 0.8486,
                "cov_recall": 0.9894,
                "cov_precision": 0.995,
                "wdist_density": 0.4658,
                "wdist_num_elements": 0.128,
            },
        ),
        (
            "CDVAE",
            "carbon_24",
            "cdvae",
            {"struct_valid": 1.0, "cov_recall": 0.998, "cov_precision": 0.8308, "wdist_density": 0.1407},
        ),
        (
            "KLDM-x0 D",
            "mp_20",
            "mattergen",
            {"rmsd_mattergen": 0.283, "avg_e_above_hull": 0.155, "stable_100meV": 0.5921, "sun_100meV": 0.1852},
        ),
    ],
)
def test_figures_are_those_of_the_papers(system: str, dataset: str, rule: str, values: dict[str, float]) -> None:
    found = [f.values for f in published() if (f.system, f.dataset, f.rule) == (system, dataset, rule)]
    assert values in found


def test_sources_name_paper_and_table() -> None:
    (figure,) = [f for f in published() if f.system == "FlowMM" and f.dataset == "carbon_24" and f.k == 20]
    assert figure.source.startswith("Miller, Chen, Sriram, Wood")
    assert "as quoted in Cornet" in figure.source
    assert figure.source.endswith("Table 4")
    (figure,) = [f for f in published() if f.system == "KLDM-x0 PC" and f.dataset == "mp_20" and f.k == 1]
    assert figure.std == {"match_rate@1": 0.002, "rmse@1": 0.001}
