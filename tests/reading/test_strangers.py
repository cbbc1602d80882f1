"""Files of strangers run no code, whichever way they come in: each names a module that would write a file."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from kldm.metrics.relaxing import read_hull
from kldm.metrics.relaxing.relaxation import _from_row
from kldm.reading import read_file, read_reference
from kldm.runs.request import SamplingRequest
from tests.small import kldm

MARK = "ran"


def attacks(module: str) -> list[dict[str, Any]]:
    """Structures that name a module, a class that opens a file, and a function, in every place that is decoded by monty
    or by pymatgen's ``from_dict``."""
    structure = Structure(Lattice.cubic(4.2), ["Na", "Cl"], np.array([[0, 0, 0], [0.5, 0.5, 0.5]])).as_dict()
    opens = {"@module": "pymatgen.io.vasp.outputs", "@class": "Vasprun", "filename": "/etc/hostname"}
    payloads: list[dict[str, Any]] = [
        {"@module": module, "@class": "Note"},
        opens,
        {"@module": module, "@callable": "note", "@bound": None},
    ]
    result = []
    for payload in payloads:
        first, *others = structure["sites"]
        result += [
            {**structure, "sites": [{**first, "properties": {"note": payload}}, *others]},
            {**structure, "properties": {"note": payload}},
            {**structure, "lattice": {**structure["lattice"], "note": payload}},
            {**structure, "@module": payload["@module"], "@class": payload.get("@class", "Note"), "note": payload},
        ]
    return result


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working directory, which is on Python's path as under ``python -m kldm``."""
    name = f"stranger_{os.getpid()}_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(f"open({MARK!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return name


def test_the_attack_is_one(tmp_path: Path, module: str) -> None:
    """The oracle: pymatgen's own reader does import the module."""
    Structure.from_dict(attacks(module)[0])
    assert (tmp_path / MARK).exists()


def lines(structures: list[dict[str, Any]]) -> str:
    return "\n".join(json.dumps({"structure": structure}) for structure in structures)


def entries(structures: list[dict[str, Any]]) -> str:
    note = structures[0]["sites"][0]["properties"]["note"]
    entry = {"@module": note["@module"], "@class": note["@class"], "composition": {"Na": 1}, "energy": -1.0}
    extra = {"data": {"note": note}, "parameters": {"note": note}, "energy_adjustments": [note], "correction": 0.0}
    return json.dumps([{**entry, **extra, "structure": structure} for structure in structures])


READERS: dict[str, tuple[str, Callable[[list[dict[str, Any]]], str], Callable[[Path], object]]] = {
    "samples": ("x.jsonl", lines, read_file),
    "list": ("x.json", json.dumps, read_file),
    "reference and training set": ("x.json", json.dumps, read_reference),
    "texts": ("x.json", lambda structures: json.dumps([json.dumps(s) for s in structures]), read_file),
    "template": ("x.json", json.dumps, lambda path: SamplingRequest(template=path)._part()),
    "hull": ("x.json", entries, lambda path: read_hull([path], "none")),
}


@pytest.mark.parametrize("way", READERS)
def test_no_module_is_imported(tmp_path: Path, module: str, way: str) -> None:
    name, written, read = READERS[way]
    (tmp_path / name).write_text(written(attacks(module)))
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    for path in (tmp_path / name, tmp_path / f"{name}.gz"):
        assert read(path)
    assert not (tmp_path / MARK).exists()
    assert module not in sys.modules


def test_kept_relaxations_are_not_decoded(tmp_path: Path, module: str) -> None:
    numbers = {"energy": -1.0, "before": 0.0, "steps": 1, "converged": True}
    assert all(_from_row({**numbers, "structure": structure}).structure for structure in attacks(module))
    assert not (tmp_path / MARK).exists()


def test_commands_import_nothing(tmp_path: Path, module: str) -> None:
    (tmp_path / "x.jsonl").write_text(lines(attacks(module)[:2]))
    rules = ("--metric.rules", '["structural"]')
    judged = kldm("evaluate", "x.jsonl", "--reference", "x.jsonl", "--train", "x.jsonl", *rules, "--out", "judged")
    assert judged.exit_code == 0, judged.output
    assert json.loads((tmp_path / "judged" / "report.json").read_text())["evaluation"]["x"]["requests"] == 2
    still = ("--relaxation.max_steps", "0")
    metal = lines(attacks(module)[:2]).replace('"Na"', '"Cu"').replace('"Cl"', '"Au"')
    (tmp_path / "metal.jsonl").write_text(metal)
    relaxed = kldm("relax", "metal.jsonl", "--potential", "emt.v1", *still, "--out", "relaxed")
    assert relaxed.exit_code == 0, relaxed.output
    assert not (tmp_path / MARK).exists()


@pytest.mark.slow
def test_workers_import_nothing_from_the_working_directory(tmp_path: Path) -> None:
    """They are started by ``python -m`` or ``-c``, which put it first on their path."""
    for name in ("joblib", "json", "multiprocessing", "pickle"):
        (tmp_path / f"{name}.py").write_text(f"open({MARK!r}, 'w').close()")
    good = Structure(Lattice.cubic(4.2), ["Na", "Cl"], np.array([[0, 0, 0], [0.5, 0.5, 0.5]])).as_dict()
    (tmp_path / "x.jsonl").write_text(lines([good] * 4))
    command = [sys.executable, "-P", "-m", "kldm", "evaluate", "x.jsonl", "--reference", "x.jsonl", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("PYTHONSAFEPATH", None)
    result = subprocess.run(
        [*command, "--out", "judged"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / MARK).exists()
