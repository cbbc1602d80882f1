"""What `kldm sample` is asked for, and what comes of it with a model that generates species."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from kldm.errors import KldmError
from kldm.interfaces import Candidate
from kldm.reading import read_samples
from kldm.runs.request import SamplingRequest, element_numbers
from tests.small import kldm, refused

HOST = Structure(
    Lattice.from_parameters(4, 4.2, 5, 80, 90, 100),
    ["Ti", "O", "O"],
    np.array([[0.1, 0.2, 0.3], [0, 0, 0], [0.5, 0.6, 0.7]]),
)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    path = tmp_path / "host.cif"
    HOST.to_file(str(path))
    return path


def sampled(folder: Path, tmp_path: Path, *arguments: str | Path) -> tuple[tuple[Candidate, ...], dict[str, Any]]:
    out = tmp_path / "samples"
    result = kldm("sample", folder, *arguments, "--out", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    return read_samples(out / "samples.jsonl"), json.loads((out / "report.json").read_text())


def structures(found: tuple[Candidate, ...]) -> list[Structure]:
    return [candidate.structure for candidate in found if candidate.structure is not None]


def test_a_chemical_system(finished_dng: Path, tmp_path: Path) -> None:
    found, report = sampled(finished_dng, tmp_path, "--elements", "Li, O,Mn", "--atoms", "4-6", "--count", "30")
    assert len(found) == 30
    assert [(candidate.target, candidate.candidate) for candidate in found] == [(number, 0) for number in range(30)]
    for structure in structures(found):
        assert {element.symbol for element in structure.composition} <= {"Li", "O", "Mn"}
        assert 4 <= len(structure) <= 6
    assert len({len(structure) for structure in structures(found)}) == 3
    assert report["requests"] == 30
    assert report["violations"] == {"elements": 0}
    assert sum(report["not_built"].values()) == 30 - len(structures(found))


def test_sizes_are_those_of_the_training_set(finished_dng: Path, tmp_path: Path) -> None:
    found, _ = sampled(finished_dng, tmp_path, "--count", "200")
    from kldm.runs.trained import load_run

    train = Counter(load_run(finished_dng)[0].data.load("train").sizes)
    sizes = Counter(len(structure) for structure in structures(found))
    assert set(sizes) <= set(train)
    commonest = max(train, key=lambda size: train[size])
    share = train[commonest] / sum(train.values())
    assert sizes[commonest] / 200 == pytest.approx(share, abs=4 * (share * (1 - share) / 200) ** 0.5)


def test_atoms_that_must_be_there(finished_dng: Path, tmp_path: Path) -> None:
    found, report = sampled(finished_dng, tmp_path, "--contains", "Li2O", "--atoms", "5", "--count", "8")
    for structure in structures(found):
        composition = structure.composition
        assert len(structure) == 5
        assert composition["Li"] >= 2
        assert composition["O"] >= 1
    assert report["violations"] == {"species": 0}


def test_a_whole_formula_with_a_model_that_generates_species(finished_dng: Path, tmp_path: Path) -> None:
    found, report = sampled(finished_dng, tmp_path, "--formula", "LiFePO4", "--count", "3")
    assert {structure.composition.formula for structure in structures(found)} <= {"Li1 Fe1 P1 O4"}
    assert [(candidate.target, candidate.candidate) for candidate in found] == [(0, 0), (0, 1), (0, 2)]
    assert report["violations"] == {"species": 0}


def test_a_host_with_guests(finished_dng: Path, tmp_path: Path, host: Path) -> None:
    found, report = sampled(finished_dng, tmp_path, "--template", host, "--atoms", "5", "--count", "4")
    for structure in structures(found):
        assert structure.lattice.parameters == pytest.approx(HOST.lattice.parameters, rel=1e-5)
        assert len(structure) == 5
        for site, kept in zip(structure, HOST, strict=False):
            assert site.specie == kept.specie
            assert site.distance(kept) < 1e-3
    assert report["violations"] == {"positions": 0, "species": 0, "cell": 0}


def test_only_the_cell_of_a_template(finished_dng: Path, tmp_path: Path, host: Path) -> None:
    found, report = sampled(finished_dng, tmp_path, "--template", host, "--keep", "cell", "--count", "4")
    assert [len(structure) for structure in structures(found)] == [3] * 4
    assert len({structure.composition.formula for structure in structures(found)}) > 1
    assert report["violations"] == {"cell": 0}


def test_some_atoms_of_a_template(finished_dng: Path, tmp_path: Path, host: Path) -> None:
    found, report = sampled(
        finished_dng, tmp_path, "--template", host, "--keep", "positions,species", "--keep-atoms", "1,3"
    )
    (structure,) = structures(found)
    assert [site.specie.symbol for site in structure][:2] == ["Ti", "O"]
    assert structure.frac_coords[:2] == pytest.approx(HOST.frac_coords[[0, 2]], abs=1e-5)
    assert len(structure) == 3
    assert report["violations"] == {"positions": 0, "species": 0}


def test_structure_prediction_in_a_known_cell(finished: Path, tmp_path: Path, host: Path) -> None:
    found, report = sampled(finished, tmp_path, "--template", host, "--keep", "cell,species", "--count", "2")
    assert [structure.composition.formula for structure in structures(found)] == ["Ti1 O2"] * 2
    assert report["violations"] == {"species": 0, "cell": 0}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--elements", "Li,Xx"], "--elements: no element is called 'Xx'"),
        (["--elements", "sr,O"], "no element is called 'sr'; did you mean 'Sr'?"),
        (["--elements", ","], "--elements: names no element"),
        (["--elements", "Lr"], "beyond atomic number 100"),
        (["--atoms", "twenty"], "--atoms twenty: wants 'empirical', a number of atoms or a range"),
        (["--contains", "Li9", "--atoms", "4-8"], "--atoms 4-8: no crystal of 9 atoms or more is asked for; ask for 9"),
        (["--contains", "Sr0.5"], "--contains Sr0.5: wants whole numbers of atoms"),
        (["--contains", "Li", "--formula", "Li"], "--formula and --contains exclude each other"),
        (["--formula", "Li", "--atoms", "3"], "--atoms has no meaning where compositions are given"),
        (["--contains", "LiX2"], "--contains LiX2: not a chemical formula; no element is called 'X'"),
        (["--contains", "Li2", "--elements", "O"], "atoms of atomic number 3 are kept"),
        (["--template", "nowhere.cif"], "nowhere.cif: no such file"),
        (["--keep-atoms", "1"], "--keep-atoms needs --template"),
        (["--count", "2", "--select", "consensus"], "--select: selects among the structures of one composition"),
    ],
    ids=str,
)
def test_mistakes_are_told_in_a_sentence(finished_dng: Path, arguments: list[str], told: str) -> None:
    before = sorted(finished_dng.iterdir())
    assert told in refused("sample", finished_dng, *arguments)
    assert sorted(finished_dng.iterdir()) == before


def test_mistakes_with_a_template(finished_dng: Path, tmp_path: Path, host: Path) -> None:
    assert "the template has atoms 1 to 3, not '2-4'" in refused(
        "sample", finished_dng, "--template", host, "--keep-atoms", "2-4"
    )
    assert "--keep-atoms 1,x: the template has atoms 1 to 3, not 'x'" in refused(
        "sample", finished_dng, "--template", host, "--keep-atoms", "1,x"
    )
    assert "did you mean 'cell'?" in refused("sample", finished_dng, "--template", host, "--keep", "cells")
    assert "no crystal of 3 atoms or more" in refused("sample", finished_dng, "--template", host, "--atoms", "2")
    (tmp_path / "broken.cif").write_text("data_nothing")
    assert "it lists no atoms; check" in refused("sample", finished_dng, "--template", tmp_path / "broken.cif")


@pytest.mark.parametrize("arguments", [["--elements", "Li"], ["--contains", "Li2"], ["--atoms", "4"]], ids=str)
def test_a_model_for_compositions_generates_no_species(finished: Path, arguments: list[str]) -> None:
    assert "the model takes its atom types from the composition" in refused("sample", finished, *arguments)


def test_a_model_for_compositions_needs_every_atom_s_type(finished: Path, host: Path) -> None:
    told = "not all atoms' types are known"
    assert told in refused("sample", finished, "--template", host, "--keep", "cell")
    assert told in refused("sample", finished, "--template", host, "--atoms", "4")


def test_chemical_systems_are_read_as_they_are_written() -> None:
    assert element_numbers("Li-Mn-O") == element_numbers("O,Mn, Li,O") == (3, 8, 25)


def test_a_request_in_python_is_checked_too() -> None:
    with pytest.raises(KldmError, match="--z needs --formula"):
        SamplingRequest(units="4")
    with pytest.raises(KldmError, match="count: must be from 1 to 10,000,000, got 0"):
        SamplingRequest(count=0)
