"""Any registered metric judges files: a user's own one through the commands, and all that kldm brings."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from pymatgen.core.structure import Structure

from kldm import registry
from kldm.evaluation.comparison import compare
from kldm.evaluation.report import Report
from tests.evaluation.test_files import REFERENCE, lines
from tests.metals import fcc, ordered
from tests.small import kldm, refused

WEIGHTS = Path(__file__).parents[2] / "weights"

OWN = '''
"""Cells that are larger than they should be."""

from typing import ClassVar

import attrs
import numpy as np

from kldm import Measurement, Samples, Terms, metric


@metric("roomy.v1")
@attrs.frozen(kw_only=True)
class Roomy:
    """The share of cells whose volume per atom is above a threshold."""

    terms: ClassVar[Terms] = Terms(needs_reference=False, agree={"thresholds": ("threshold",)}, shares=("roomy",))

    threshold: float = 20.0

    def measure(self, samples: Samples) -> Measurement:
        rows = [
            {"per_atom": None if candidate.structure is None else candidate.structure.volume / len(candidate.structure)}
            for candidate in samples.candidates
        ]
        roomy = [row["per_atom"] is not None and row["per_atom"] > self.threshold for row in rows]
        volumes = [row["per_atom"] for row in rows if row["per_atom"] is not None]
        values = {"roomy": sum(roomy) / len(roomy), "volume": sum(volumes) / len(volumes), "n_cells": len(volumes)}
        return Measurement(values, tuple(rows), {"threshold": self.threshold}, ("A user's own metric.",))


@metric("closest.v1")
@attrs.frozen
class Closest:
    """How often the answer to a target has its volume, with the default terms."""

    def measure(self, samples: Samples) -> Measurement:
        return Measurement({"references": len(samples.reference)})


@metric("arrays.v1")
@attrs.frozen
class Arrays:
    """Numbers as numpy has them, and a row for every structure alone, if wanted."""

    structures_alone: bool = False

    def measure(self, samples: Samples) -> Measurement:
        structures = [candidate.structure for candidate in samples.candidates]
        edges = [structure.lattice.abc for structure in structures if structure or not self.structures_alone]
        rows = tuple({"edges": np.array(lengths), "longest": np.float32(max(lengths))} for lengths in edges)
        mean, nothing = np.mean(edges, dtype=np.float32), np.float64("nan")
        return Measurement({"mean": mean, "nothing": nothing}, rows, {"weights": np.ones(2)})


@metric("raising.v1")
@attrs.frozen
class Raising:
    """The number of bonds, as if every structure had some."""

    def measure(self, samples: Samples) -> Measurement:
        return Measurement({"bonds": self._bonds(samples)})

    def _bonds(self, samples: Samples) -> float:
        raise ValueError("no bonds")  # of the metric


@metric("answering.v1")
@attrs.frozen
class Answering:
    """How often the answer to a target has its composition."""

    terms: ClassVar[Terms] = Terms(answers=True)

    def measure(self, samples: Samples) -> Measurement:
        pairs = [(candidate.structure, samples.reference[candidate.target]) for candidate in samples.candidates]
        same = [structure is not None and structure.composition == target.composition for structure, target in pairs]
        return Measurement({"same": sum(same) / len(samples.reference)}, tuple({"same": agrees} for agrees in same))
'''


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a user's metrics."""
    path = tmp_path_factory.mktemp("code") / "own_metrics.py"
    path.write_text(OWN)
    return path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Cells of 34.5, 39.8 and 16.4 cubic angstrom an atom, and one that failed."""
    rows: list[dict[str, Any]] = [
        {"target": row, "structure": REFERENCE[at].as_dict()} for row, at in enumerate((0, 1, 3))
    ]
    return lines(tmp_path / "samples.jsonl", [*rows, {"target": 3, "structure": None, "reason": "no cell"}])


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def cells(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.strip().startswith(f"{label}  "))
    return [cell.strip() for cell in line.strip().split("  ") if cell.strip()][1:]


def test_a_metric_of_one_s_own_judges_files_and_is_compared(code: Path, samples: Path, tmp_path: Path) -> None:
    arguments = (samples, "--metric", "roomy.v1", "--code", code)
    done = kldm("evaluate", *arguments, "--out", tmp_path / "one")
    assert done.exit_code == 0, done.output
    assert cells(done.output, "roomy.v1.roomy") == ["0.5000"]
    assert cells(done.output, "roomy.v1.n_cells") == ["3"]
    assert cells(done.output, "reference") == ["none"]
    assert [row["per_atom"][:4] for row in table(tmp_path / "one")] == ["34.4", "39.7", "16.3", ""]
    found = Report.read(tmp_path / "one" / "report.json").evaluation["samples"].metrics["roomy.v1"]
    assert (found.values["roomy"], found.values["n_cells"], found.definition) == (0.5, 3, {"threshold": 20.0})

    done = kldm("evaluate", *arguments, "--metric.threshold", "35", "--out", tmp_path / "other")
    assert done.exit_code == 0, done.output
    other = json.loads((tmp_path / "other" / "report.json").read_text())["evaluation"]["samples"]
    assert other["metrics"]["roomy.v1"]["values"]["roomy"] == 0.25

    compared = kldm("compare", tmp_path / "one", tmp_path / "other", WEIGHTS / "perov5_small")
    assert compared.exit_code == 0, compared.output
    assert cells(compared.output, "roomy.v1") == ["one", "other"]
    assert cells(compared.output, "roomy") == ["50.0 %", "25.0 %"]  # a share, as the report itself says
    assert cells(compared.output, "volume")[0] == cells(compared.output, "volume")[1]
    assert "warning: roomy.v1: the thresholds differ: threshold 20 (one); threshold 35 (other)" in compared.output
    assert "published: match_rate.v1, perov_5/test" in compared.output


def test_several_files_are_several_sets_or_several_answers(code: Path, samples: Path, tmp_path: Path) -> None:
    second = lines(tmp_path / "second.jsonl", [{"target": 0, "structure": REFERENCE[0].as_dict()}])
    done = kldm("evaluate", samples, second, "--metric", "roomy.v1", "--code", code, "--out", tmp_path / "sets")
    assert done.exit_code == 0, done.output
    found = Report.read(tmp_path / "sets" / "report.json").evaluation["2 files"].metrics["roomy.v1"]
    assert (found.values["roomy"], found.values["roomy_std"]) == (0.75, 0.25)
    assert [values["roomy"] for values in found.seeds] == [0.5, 1.0]
    assert found.definition["threshold"] == 20.0
    assert cells(kldm("compare", tmp_path / "sets").output, "roomy") == ["75.0 ± 25.0 %"]

    reference = lines(tmp_path / "reference.jsonl", [{"structure": structure.as_dict()} for structure in REFERENCE])
    arguments = ("--metric", "answering.v1", "--code", code, "--reference", reference, "--out", tmp_path / "answers")
    done = kldm("evaluate", samples, second, *arguments)
    assert done.exit_code == 0, done.output
    judged = Report.read(tmp_path / "answers" / "report.json").evaluation["2 files"]
    assert judged.metrics["answering.v1"].values == {"same": 0.75}  # 0 twice, 1 once; row 2 got another, row 3 nothing
    assert [(row["target"], row["candidate"], row["same"]) for row in table(tmp_path / "answers")][:2] == [
        ("0", "0", "True"),
        ("0", "1", "True"),
    ]


def test_a_metric_without_terms_wants_a_reference(code: Path, samples: Path, tmp_path: Path) -> None:
    arguments = (samples, "--metric", "closest.v1", "--code", code, "--out", tmp_path / "out")
    assert "closest.v1 needs a reference; add --reference" in refused("evaluate", *arguments)
    assert kldm("evaluate", *arguments, "--reference", samples).exit_code == 0
    found = Report.read(tmp_path / "out" / "report.json").evaluation["samples"].metrics["closest.v1"]
    assert found.values == {"references": 4}


def test_a_metric_that_raises_is_told_with_its_line(code: Path, samples: Path, tmp_path: Path) -> None:
    line = next(number for number, text in enumerate(OWN.splitlines(), start=1) if "# of the metric" in text)
    arguments = (samples, "--metric", "raising.v1", "--code", code, "--reference", samples, "--out", tmp_path / "out")
    told = refused("evaluate", *arguments)
    assert told.startswith(
        f"raising.v1: it failed at own_metrics.py:{line}: ValueError: no bonds; a metric has to judge"
    )
    assert not (tmp_path / "out" / "report.json").exists()


def test_numbers_of_numpy_are_numbers(code: Path, samples: Path, tmp_path: Path) -> None:
    built = lines(tmp_path / "built.jsonl", [{"structure": structure.as_dict()} for structure in REFERENCE[:2]])
    arguments = ("--metric", "arrays.v1", "--code", code, "--reference", built, "--out", tmp_path / "out")
    done = kldm("evaluate", built, *arguments)
    assert done.exit_code == 0, done.output
    found = Report.read(tmp_path / "out" / "report.json").evaluation["built"].metrics["arrays.v1"]
    assert found.values == {"mean": pytest.approx(4.2), "nothing": None}
    assert found.definition == {"weights": [1.0, 1.0]}
    (first, _) = (json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert first["edges"] == pytest.approx([4.1, 4.1, 4.1])
    told = refused("evaluate", samples, *arguments[:-1], tmp_path / "none", "--metric.structures_alone", "true")
    assert told.startswith("arrays.v1: it returned 3 rows for 4 candidates; return one for each candidate")


def test_a_metric_of_one_s_own_stands_in_a_run(code: Path, tmp_path: Path, finished: Path) -> None:
    """Samples of a run are judged again by another recipe of the same run folder, with the metric beside its own."""
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    recipe = folder / "recipe.cfg"
    recipe.write_text(recipe.read_text() + '\n[metrics.room]\n@metrics = "roomy.v1"\nthreshold = 15.0\n')
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    done = kldm("evaluate", folder, "--code", code)
    assert done.exit_code == 0, done.output
    assert {file: file.read_bytes() for file in before} == before, "the run's own results"
    assert "run/evaluation-1/test" in [column.name for column in compare([folder]).columns]
    judged = Report.read(folder / "evaluation-1" / "report.json").evaluation["test"]
    assert {name: found.metric for name, found in judged.metrics.items()} == {
        "csp": "match_rate.v1",
        "room": "roomy.v1",
    }
    with (folder / "evaluation-1" / "test.csv").open(newline="") as file:
        assert {"rms", "per_atom"} <= set(next(csv.reader(file)))
    assert judged.metrics["csp"] == Report.read(finished / "report.json").evaluation["test"].metrics["csp"]


def metals(path: Path, *structures: Structure) -> Path:
    return lines(path, [{"structure": structure.as_dict()} for structure in structures])


@pytest.mark.parametrize(
    ("name", "keys", "values"),
    [
        ("match_rate.v1", ["--metric.rules", '["structural"]'], {"structural.match_rate@1": 1.0}),
        ("de_novo.v1", ["--metric.coverage", "false"], {"struct_valid": 1.0, "comp_valid": 1.0}),
        ("validity.v1", [], {"struct_valid": 1.0, "comp_valid": 1.0, "valid": 1.0}),
        (
            "stability.v1",
            ["--metric.potential.@potentials", "emt.v1", "--metric.relaxation.max_steps", "0"],
            {"unique": 1.0, "novel": 0.0, "n_failed": 0.0},
        ),
    ],
)
def test_every_metric_of_kldm_judges_files(
    name: str, keys: list[str], values: dict[str, float], tmp_path: Path
) -> None:
    assert name in registry.metrics.names()
    made = metals(tmp_path / "made.jsonl", fcc("Cu", 3.6), ordered("Au", "Cu", 3.75))
    done = kldm("evaluate", made, "--reference", made, "--metric", name, *keys, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    judged = Report.read(tmp_path / "out" / "report.json").evaluation["made"]
    found = judged.metrics[name]
    assert {key: found.values[key] for key in values} == values
    assert judged.reference is not None
    assert (judged.reference.rows, judged.requests) == (2, 2)
    assert [row["formula"] for row in table(tmp_path / "out")] == ["Cu", "Cu3Au"]
    compared = kldm("compare", tmp_path / "out")
    assert compared.exit_code == 0, compared.output
    assert cells(compared.output, name) == ["out"]


def test_the_cutoffs_of_coverage_go_with_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kldm.interfaces import Candidate, Samples
    from kldm.metrics import DeNovo

    monkeypatch.setenv("KLDM_CACHE", str(tmp_path))
    structure = fcc("Cu", 3.6)

    def used(source: str, **options: Any) -> Any:
        samples = Samples((Candidate(0, 0, structure),), (structure,), source)
        coverage = DeNovo(**options).measure(samples).definition["coverage"]
        assert isinstance(coverage, dict)
        return coverage["cutoffs"], coverage["structure_cutoff"]

    assert used("perov_5/test") == ("perov_5", 0.2)
    assert used("mine.jsonl") == ("mp_20", 0.4)
    assert used("perov_5/test", cutoffs="mp_20") == ("mp_20", 0.4)
