"""What a run leaves: every file reads back, equal results make equal bytes, and a full disk harms nothing."""

import errno
import json
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import read
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from kldm.errors import KldmError
from kldm.evaluation.results import LIBRARIES, library_versions, write_json, write_samples, write_table
from kldm.interfaces import UNPLACED, Candidate
from kldm.reading import read_samples
from kldm.runtime.files import atomic_write


def olivine_like() -> Structure:
    """A skewed cell with positions that no symmetry rounds."""
    places = np.array([[0.1, 0.2, 0.3], [0.33333, 0.66667, 0.5], [0.9, 0.01, 0.7]])
    return Structure(Lattice.from_parameters(4.1, 5.2, 6.3, 81, 97, 104), ["Li", "Fe", "O"], places)


def with_x(x: float) -> Structure:
    return Structure(Lattice.cubic(4), ["Na", "Cl"], np.array([[0, 0, 0], [x, 0.5, 0.5]]))


def flat() -> Structure:
    return Structure([[4, 0, 0], [0, 4, 0], [4, 4, 0]], ["Na"], np.zeros((1, 3)))


CANDIDATES = (
    Candidate(12, 0, olivine_like()),
    Candidate(12, 1, None, "the cell could not be built"),
    Candidate(3, 0, with_x(0.5)),
    Candidate(3, 1, with_x(math.nan)),
)


def same(first: Structure | None, other: Structure | None) -> bool:
    """Equal to the eight decimals that text files keep, whatever the rotation of the cell and the order of sites."""
    assert first is not None
    assert other is not None
    places = dict(zip(map(str, first.species), first.frac_coords, strict=True))
    return np.allclose(first.lattice.parameters, other.lattice.parameters, atol=1e-6) and all(
        np.allclose(place, places[str(name)], atol=1e-7)
        for name, place in zip(other.species, other.frac_coords, strict=True)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_samples(tmp_path / "run", CANDIDATES, {row: f"mp-{row}" for row in range(13)})
    return tmp_path / "run"


def test_jsonl_keeps_everything(folder: Path) -> None:
    found = read_samples(folder / "samples.jsonl")
    numbers = [(c.target, c.candidate, c.reason) for c in CANDIDATES]
    numbers[3] = (*numbers[3][:2], "the coordinates hold a number that is not finite")
    assert [(c.target, c.candidate, c.reason) for c in found] == numbers
    assert found[0].structure == olivine_like()
    assert found[1].structure is None
    assert found[3].species == (11, 17)
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"target", "candidate", "structure", "reason", "name"}] * 4
    assert [row["name"] for row in rows] == [f"mp-{c.target}" for c in CANDIDATES]


@pytest.mark.parametrize("name", ["samples.extxyz", "structures.zip"])
def test_structures_read_back(folder: Path, name: str) -> None:
    found = {(c.target, c.candidate): c.structure for c in read_samples(folder / name)}
    assert set(found) == {(12, 0), (3, 0)}
    assert same(found[12, 0], olivine_like())
    assert same(found[3, 0], with_x(0.5))


def test_the_atoms_of_a_failed_candidate_are_kept(tmp_path: Path) -> None:
    failed = Candidate(0, 0, None, "exploded", (11, 17, 17))
    write_samples(tmp_path, [failed])
    (found,) = read_samples(tmp_path / "samples.jsonl")
    assert (found.structure, found.reason, found.species) == (None, "exploded", (11, 17, 17))


def test_a_candidate_of_no_target_is_read_back(tmp_path: Path) -> None:
    write_samples(tmp_path, [Candidate(3, 0, with_x(0.5)), Candidate(UNPLACED, 1, None, "cut short")])
    found = read_samples(tmp_path / "samples.jsonl")
    assert [(c.target, c.candidate, c.reason) for c in found] == [(3, 0, ""), (UNPLACED, 1, "cut short")]


def test_names_and_labels(folder: Path) -> None:
    with zipfile.ZipFile(folder / "structures.zip") as archive:
        assert archive.namelist() == ["00012_00_LiFeO.cif", "00003_00_NaCl.cif"]
        assert archive.testzip() is None
    frame = read(folder / "samples.extxyz", index=0)
    assert isinstance(frame, Atoms)
    assert frame.info == {"target": 12, "candidate": 0, "formula": "LiFeO", "name": "mp-12"}


def test_equal_samples_make_equal_bytes(folder: Path, tmp_path: Path) -> None:
    write_samples(tmp_path / "again", CANDIDATES, {row: f"mp-{row}" for row in range(13)})
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["samples.extxyz", "samples.jsonl", "structures.zip"]
    assert [(folder / name).read_bytes() for name in files] == [
        (tmp_path / "again" / name).read_bytes() for name in files
    ]


@pytest.mark.parametrize("name", ["samples.jsonl", "samples.extxyz", "structures.zip"])
def test_no_candidates_and_a_flat_cell(tmp_path: Path, name: str) -> None:
    write_samples(tmp_path / "none", ())
    with pytest.raises(KldmError, match="holds no structures"):
        read_samples(tmp_path / "none" / name)
    write_samples(tmp_path / "flat", (Candidate(0, 0, flat()),))
    (found,) = read_samples(tmp_path / "flat" / name)
    assert (found.target, found.candidate) == (0, 0)


def test_table(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    write_table(
        path, [{"target": 0, "reason": 'a "quoted", one', "rms": None}, {"target": 1, "rms": 0.1, "extra": True}]
    )
    assert path.read_text() == 'target,reason,rms,extra\n0,"a ""quoted"", one",,\n1,,0.1,True\n'
    write_table(path, [])
    assert path.read_text() == ""


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", {"a": [1, math.nan, (math.inf, True)], "b": {"c": None, "d": "Å"}})
    text = (tmp_path / "report.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse) == {"a": [1, None, [None, True]], "b": {"c": None, "d": "Å"}}


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["os.replace", "os.fsync", "pathlib.Path.open"])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_json(path, {"new": 1}),
        lambda path: write_table(path, [{"new": 1}]),
    ],
)
def test_a_full_disk_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "results"
    path.write_text("old")
    monkeypatch.setattr(step, full_disk)
    with pytest.raises(KldmError, match=r"results: cannot write the file: No space left on device"):
        write(path)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", [FileNotFoundError(errno.ENOENT, "", "elsewhere"), ZeroDivisionError()])
def test_atomic_write_passes_other_faults_on(tmp_path: Path, fault: Exception) -> None:
    path = tmp_path / "results"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise fault

    with pytest.raises(type(fault)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KldmError, match="cannot write the file"):
        write_json(tmp_path / "file" / "report.json", None)


def test_versions_name_what_is_behind_the_results() -> None:
    found = library_versions()
    assert set(found) == {"python", *LIBRARIES}
    assert found["numpy"] == np.__version__
