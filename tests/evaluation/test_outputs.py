"""What commands write and print: a user's files stay, failures end with their reason, and texts are harmless."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kldm.errors import KldmError, printable, reason_of
from kldm.evaluation.comparison import compare
from kldm.evaluation.judging import failure
from kldm.evaluation.results import write_lines, write_table
from tests.evaluation.test_files import lines, salt
from tests.metals import fcc
from tests.small import kldm, refused

NASTY = 'a\rb "c"\n\x1b[31mred\x1b[0m,\ud800\x00\u202e\x85'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A user's folder, with results of his own and samples of two kinds."""
    for name in ("results.csv", "results.jsonl", "report.json"):
        (tmp_path / name).write_text(f"the user's {name}")
    structure = salt("Cs", "Cl", 4.1).as_dict()
    lines(tmp_path / "a.jsonl", [{"structure": structure}])
    lines(tmp_path / "b.jsonl", [{"structure": structure}, {"structure": None, "reason": NASTY}])
    return tmp_path


def validity(path: Path, *arguments: str | Path) -> Any:
    return kldm("evaluate", path, "--metric", "validity.v1", *arguments)


def test_evaluations_are_numbered_and_replace_nothing(place: Path) -> None:
    before = {file: file.read_bytes() for file in place.iterdir()}
    for number, name in enumerate(("a.jsonl", "b.jsonl"), start=1):
        done = validity(place / name)
        assert done.exit_code == 0, done.output
        assert done.output.splitlines()[-1] == f"report: {place / f'evaluation-{number}' / 'report.json'}"
    assert {file: file.read_bytes() for file in before} == before
    (column,) = compare([place]).columns
    assert column.name == f"{place.name}/evaluation-2", "the newest, and the user's file is none"
    assert column.judgement.requests == 2


@pytest.mark.parametrize("name", ["results.csv", "results.jsonl", "report.json"])
def test_results_at_out_are_refused_before_the_work(place: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    told = refused("evaluate", place / "absent.jsonl", "--metric", "validity.v1", "--out", out)
    assert told == f"{place / 'absent.jsonl'}: there is no such file or folder"
    told = refused("evaluate", place / "a.jsonl", "--metric", "validity.v1", "--out", out)
    assert told.startswith(f"{out}: the folder has a file {name} already, which is not replaced; choose another --out")
    assert [file.read_text() for file in out.iterdir()] == ["mine"]


def test_comparisons_are_not_replaced(place: Path) -> None:
    assert validity(place / "a.jsonl").exit_code == 0
    assert kldm("compare", place, "--out", place / "compared").exit_code == 0
    assert "comparison.json already" in refused("compare", place, "--out", place / "compared")


def test_all_programs_count_the_same_rows(place: Path) -> None:
    done = validity(place / "b.jsonl")
    assert printable(done.output.replace("\n", "")) == done.output.replace("\n", "")
    table = place / "evaluation-1" / "results.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    reason = 'a b "c" ?[31mred?[0m,???'
    assert [row["reason"] for row in rows] == ["", reason]
    assert len(table.read_bytes().splitlines()) == len(pd.read_csv(table)) + 1 == 3
    found = [json.loads(line) for line in table.with_suffix(".jsonl").read_bytes().splitlines()]
    assert len(found) == 2
    assert json.dumps(found, ensure_ascii=False).encode("utf-8"), "no lone surrogates"


def test_keys_and_texts_of_any_kind_are_written(tmp_path: Path) -> None:
    rows = [{NASTY: NASTY, "n": float("nan")}]
    write_table(tmp_path / "table.csv", rows)
    write_lines(tmp_path / "table.jsonl", rows)
    assert len((tmp_path / "table.csv").read_bytes().splitlines()) == 2
    (row,) = map(json.loads, (tmp_path / "table.jsonl").read_text().splitlines())
    assert row["n"] is None


def test_errors_are_told_in_their_own_words() -> None:
    told = {
        "too many indices for tensor": IndexError("too many indices for tensor\nand more"),
        "KeyError: 'x'": KeyError("x"),
        "out of memory": MemoryError(),
        "ValueError without a message": ValueError(),
        "?[1m bold": ValueError("\n\x1b[1m bold"),
    }
    assert {reason_of(error): error for error in told.values()} == told
    assert len(reason_of(ValueError("long " * 100))) == 200
    assert str(KldmError("odd\x1b[0m", place="a\rb")) == "a b: odd?[0m"


def test_if_all_failed_the_reason_ends_the_command(tmp_path: Path) -> None:
    samples = lines(tmp_path / "none.jsonl", [{"structure": None, "reason": "no luck"}] * 3)
    done = validity(samples)
    assert done.exit_code == 1
    assert "all 3 structures failed: no luck" in done.output.splitlines()[-1]
    assert len((tmp_path / "evaluation-1" / "results.csv").read_text().splitlines()) == 4


def test_a_limit_that_nothing_keeps_ends_the_command(tmp_path: Path) -> None:
    samples = lines(tmp_path / "a.jsonl", [{"structure": (salt("Cs", "Cl", 4.1) * 4).as_dict()}])
    done = kldm("evaluate", samples, "--reference", samples, "--time-limit", "1e-9")
    assert done.exit_code == 1
    assert re.search(r"all 1 structures failed: .*time limit of 1e-09 s", done.output.splitlines()[-1])


def test_the_most_common_reason_stands_for_all() -> None:
    assert failure(3, {"a": 2, "b": 1}) == "all 3 structures failed, 2 of them: a"
    assert failure(3, {"a": 2}) is failure(0, {}) is None


ODD = """
import time
import attrs
from ase.calculators.calculator import Calculator, all_changes
from kldm import potential

class Odd(Calculator):
    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self, how):
        super().__init__()
        self.how = how

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if self.how == "sleeps":
            time.sleep(60)
        if self.how == "exits":
            raise SystemExit(3)
        if self.how == "memory":
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        self.results = {"energy": float("nan") if self.how == "nan" else -1.0, "forces": 0 * atoms.positions}

@potential("odd.v1")
@attrs.frozen(kw_only=True)
class OddPotential:
    how: str
    label = "odd"
    scale = "own"

    @property
    def identity(self):
        return {"name": "odd.v1", "how": self.how}

    def calculator(self):
        return Odd(self.how)
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "odd_potentials.py"
    path.write_text(ODD)
    return path


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        pytest.param("sleeps", "time limit of 0.5 s", marks=pytest.mark.slow),
        ("exits", "the potential failed: it wanted to end the program (exit status 3)"),
        ("memory", "the potential failed: CUDA out of memory. Tried to allocate 20 GiB"),
        ("nan", "energy not finite"),
        ("no_stress", "the potential failed: stress not present in this calculation"),
    ],
)
def test_odd_potentials_fail_with_their_own_words(
    odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, reason: str
) -> None:
    monkeypatch.setenv("KLDM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "s.json").write_text(json.dumps([fcc("Cu", edge).as_dict() for edge in (3.6, 3.7)]))
    code = ("--code", odd, "--potential", "odd.v1", "--potential.how", how)
    limit = "0.5" if how == "sleeps" else "60"
    done = kldm("relax", tmp_path / "s.json", *code, "--time-limit", limit)
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].endswith(f"relaxed-1: all 2 structures failed: {reason}")
    with (tmp_path / "relaxed-1" / "relaxation.csv").open(newline="") as file:
        assert [row["reason"] for row in csv.DictReader(file)] == [reason] * 2
