"""Samples in every format: the candidates that are read, failed candidates, and broken files."""

import gzip
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from ase.io import write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymatgen.entries.computed_entries import ComputedStructureEntry
from pymatgen.io.vasp.inputs import Poscar

from kldm.errors import KldmError
from kldm.interfaces import UNPLACED, Candidate
from kldm.metrics.validity import structural_validity
from kldm.reading import Reference, align, read_file, read_reference, read_samples
from tests.salts import cif, edges, in_zip, salt


def numbers(found: Sequence[Candidate]) -> list[tuple[int, int]]:
    return [(c.target, c.candidate) for c in found]


def outcome(path: Path) -> tuple[Candidate, ...] | str:
    """The candidates of a file, or the message of the error."""
    try:
        return read_samples(path)
    except KldmError as error:
        return str(error)


def pack(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed


def test_jsonl_contract(tmp_path: Path) -> None:
    nan = salt().as_dict()
    nan["sites"][1]["abc"] = [math.nan, 0.5, 0.5]
    no_cell = salt().as_dict()
    no_cell["lattice"]["matrix"] = None
    rows: list[dict[str, Any]] = [
        {"target": 3, "candidate": 1, "structure": salt(3.5).as_dict()},
        {"target": 3, "candidate": 0, "structure": nan, "extra": 1},
        {"target": 0, "candidate": 0, "structure": no_cell},
        {"target": 0, "candidate": 1, "structure": None, "reason": "exploded"},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8-sig")
    found = read_file(path)
    assert found.labelled
    assert numbers(found.candidates) == [(3, 1), (3, 0), (0, 0), (0, 1)]
    assert edges(found.candidates) == [3.5, None, None, None]
    assert [candidate.species for candidate in found.candidates] == [(), (11, 17), (11, 17), ()]
    not_finite = "the coordinates hold a number that is not finite"
    assert [c.reason for c in found.candidates] == ["", not_finite, "no cell", "exploded"]
    assert found.places[2] == f"{path}:3"
    assert numbers(read_samples(pack(path))) == numbers(found.candidates)


def test_rows_without_candidate_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"target": t, "structure": None}) for t in (5, 2, 5, 5)))
    assert numbers(read_samples(path)) == [(5, 0), (2, 0), (5, 1), (5, 2)]


def test_labels_on_some_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = [{"target": 1, "structure": None}, {"target": None, "structure": salt().as_dict()}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(KldmError, match=r"x.jsonl:2: 1 of 2 rows have a 'target', but this one has none"):
        read_samples(path)


def test_structures_that_cannot_be_built(tmp_path: Path) -> None:
    good = salt().as_dict()
    by_parameters = {key: value for key, value in good["lattice"].items() if key != "matrix"}
    unknown = json.loads(json.dumps(good).replace('"Na"', '"Qq"'))
    rows = [
        {"structure": good},
        good,
        {"structure": {**good, "lattice": by_parameters}},
        {"structure": {**good, "lattice": {**good["lattice"], "matrix": None}}},
        {"structure": {**good, "lattice": {**good["lattice"], "a": -4.0}}},
        {"structure": {"nonsense": 1}},
        {"structure": [1, 2]},
        {"structure": unknown},
        {"structure": None},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = read_file(tmp_path / "x.jsonl")
    assert not found.labelled
    assert numbers(found.candidates) == [(row, 0) for row in range(len(rows))]
    assert edges(found.candidates) == [4.0] * 3 + [None] * 6
    reasons = [c.reason for c in found.candidates[3:]]
    assert reasons == [
        "no cell",
        "cell length not positive",
        "there is no 'lattice'",
        "there is no 'lattice'",
        "'Qq' is no element",
        "no structure",
    ]


def test_json(tmp_path: Path) -> None:
    entry = ComputedStructureEntry(salt(5), -1.0, entry_id="mp-1").as_dict()
    contents: list[tuple[Any, list[float | None], list[str]]] = [
        (salt(3).as_dict(), [3], [""]),
        ([salt(3).as_dict(), salt(4).as_dict()], [3, 4], ["", ""]),
        ([entry, {"structure": salt(4).as_dict(), "material_id": 7}], [5, 4], ["mp-1", "7"]),
        ({"a": salt(3).as_dict(), "b": {"structure": None}}, [3, None], ["a", "b"]),
        ({"version": 1, "structures": [salt(3).as_dict()]}, [3], [""]),
    ]
    for content, wanted, names in contents:
        (tmp_path / "x.json").write_text(json.dumps(content))
        found = read_file(pack(tmp_path / "x.json"))
        assert edges(found.candidates) == wanted
        assert list(found.names) == names


def test_extxyz(tmp_path: Path) -> None:
    def frame(a: float, **info: int) -> Atoms:
        return Atoms("NaCl", scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=[a] * 3, pbc=True, info=info)

    write(tmp_path / "x.extxyz", [frame(3, target=4, candidate=1), frame(4, target=4, candidate=0)])
    for path in (tmp_path / "x.extxyz", pack(tmp_path / "x.extxyz")):
        found = read_file(path)
        assert (numbers(found.candidates), edges(found.candidates)) == ([(4, 1), (4, 0)], [3, 4])
        assert found.labelled
    write(tmp_path / "y.xyz", [frame(3), frame(4)], format="extxyz")
    assert numbers(read_samples(tmp_path / "y.xyz")) == [(0, 0), (1, 0)]
    write(tmp_path / "z.xyz", frame(3, target=0, candidate=-1), format="extxyz")
    with pytest.raises(KldmError, match="frame 0: 'target' and 'candidate' must be whole numbers from 0"):
        read_samples(tmp_path / "z.xyz")


def test_frames_without_a_cell_or_with_unknown_elements(tmp_path: Path) -> None:
    lattice = 'Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 pbc="T T T"'
    (tmp_path / "x.extxyz").write_text(
        f"1\n{lattice}\nNa 0 0 0\n1\n\nNa 0 0 0\n1\n{lattice}\nX 0 0 0\n1\n{lattice}\nNa nan 0 0\n"
    )
    found = read_samples(tmp_path / "x.extxyz")
    not_finite = "the coordinates hold a number that is not finite"
    no_cell = "there is no cell (its second line has no Lattice)"
    assert [c.reason for c in found] == ["", no_cell, "'X' is no element", not_finite]
    assert [c.species for c in found] == [(), (11,), (), (11,)]


def test_csv(tmp_path: Path) -> None:
    from csv import writer

    with (tmp_path / "x.csv").open("w", newline="") as file:
        writer(file).writerows([["cif", "material_id"], [cif(salt(3)), "mp-1"], ["", "mp-2"], [cif(salt(4)), ""]])
    for path in (tmp_path / "x.csv", pack(tmp_path / "x.csv")):
        found = read_file(path)
        assert edges(found.candidates) == [3, None, 4]
        assert found.names == ("mp-1", "mp-2", "2")
        assert found.candidates[1].reason == "the entry is empty"
        assert not found.labelled


def test_many_cifs_keep_their_order(tmp_path: Path) -> None:
    """More texts than fill a chunk; many of them are parsed by other processes."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(70):
            archive.writestr(f"{number}.cif", cif(salt(3 + number / 100)) if number != 66 else "broken")
    wanted = [None if number == 66 else round(3 + number / 100, 6) for number in range(70)]
    assert edges(read_samples(tmp_path / "x.zip")) == wanted


def test_folder_of_cifs(tmp_path: Path) -> None:
    for name, a in {"s10.cif": 10.0, "s9.cif": 9.0, "S2.CIF": 2.0, ".hidden.cif": 1.0}.items():
        (tmp_path / name).write_text(cif(salt(a)))
    (tmp_path / "s1.cif").write_bytes(b"\xff\xfe\x00 not text")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "deeper.cif").mkdir()
    found = read_file(tmp_path)
    assert found.names == ("S2", "s1", "s9", "s10")
    assert edges(found.candidates) == [2, None, 9, 10]
    assert not found.labelled


def test_failed_rows_without_a_target_answer_no_row(tmp_path: Path) -> None:
    lines = [json.dumps({"structure": salt().as_dict(), "target": t}) for t in range(3)]
    (tmp_path / "x.jsonl").write_text(
        "\n".join([*lines[:2], lines[2][:99], '{"structure": null, "reason": "exploded"}'])
    )
    frame = '2\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 {}\nNa 0 0 0\nCl 2 2 2\n'
    cut = '2\nLattice="4 0 0\nNa 0 0 0\n'
    (tmp_path / "x.extxyz").write_text(frame.format("target=0") + cut + frame.format("target=1"))
    in_zip(tmp_path / "x.zip", {"0_0_A.cif": cif(salt()), "1_0_B.cif": cif(salt()), "odd.cif": "nonsense"})
    for name, failed in {"x.jsonl": [2, 3], "x.extxyz": [1], "x.zip": [2]}.items():
        found = read_file(tmp_path / name)
        assert found.labelled
        assert [n for n in numbers(found.candidates) if n[0] != UNPLACED] == [(0, 0), (1, 0)]
        assert [n for n in numbers(found.candidates) if n[0] == UNPLACED] == [(UNPLACED, row) for row in failed]
        assert "1 of " in found.notes[0]
        assert "they cannot be read" in found.notes[0]
        structures = tuple(salt(4 + row / 10) for row in range(3))
        placed = align([found], Reference("mine", structures, ("",) * 3, ("", "", ""), whole=False))
        assert numbers(placed.candidates) == [(0, 0), (1, 0)]
        assert numbers(placed.unplaced) == [(UNPLACED, row) for row in failed]
        assert f"{len(failed)} of {len(found.candidates)} samples have no target" in placed.notes[0]
    reference = read_reference(tmp_path / "x.extxyz")
    assert [structure is None for structure in reference.structures] == [False, False, True]


def test_cifs_that_carry_numbers(tmp_path: Path) -> None:
    names = ["00003_01_NaCl.cif", "00003_00_NaCl.cif", "00012_00_NaCl.cif"]
    for name in names:
        (tmp_path / name).write_text(cif(salt()))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in [*names, "__MACOSX/00001_00_NaCl.cif", "readme.txt"]:
            archive.writestr(name, cif(salt()))
    for path in (tmp_path, tmp_path / "x.zip"):
        assert read_file(path).labelled
        assert numbers(read_samples(path)) == [(3, 0), (3, 1), (12, 0)]
    (tmp_path / "other.cif").write_text(cif(salt()))
    assert not read_file(tmp_path).labelled
    assert numbers(read_samples(tmp_path)) == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_broken_cifs_are_failed_candidates(tmp_path: Path) -> None:
    good = cif(salt())
    texts = {
        "00000_00_A.cif": good,
        "00001_00_B.cif": "not a CIF",
        "00002_00_C.cif": "",
        "00003_00_D.cif": good.replace("_cell_length_a   4", "_cell_length_a   -4"),
        "00004_00_E.cif": good.replace("0.50000000  0.50000000", "nan  0.50000000"),
    }
    in_zip(tmp_path / "cifs.zip", texts)
    found = read_samples(tmp_path / "cifs.zip")
    assert [c.target for c in found] == [0, 1, 2, 3, 4]
    assert [c.structure is not None for c in found[:4]] == [True, False, False, False]
    assert [c.reason for c in found[1:]] == [
        "it is no CIF: there is no line that begins with data_",
        "it is empty",
        "cell length not positive",
        "the coordinates hold a number that is not finite",
    ]
    assert [c.species for c in found[2:]] == [(), (11, 17), (11, 17)]


def test_single_files(tmp_path: Path) -> None:
    (tmp_path / "one.cif").write_text(cif(salt(3)))
    assert edges(read_samples(pack(tmp_path / "one.cif"))) == [3]
    (tmp_path / "two.cif").write_text("data_global\n_journal 'x'\n" + cif(salt(3)) + cif(salt(4)))
    found = read_file(tmp_path / "two.cif")
    assert (edges(found.candidates), found.names) == ([3, 4], ("NaCl", "NaCl"))
    for name in ("POSCAR", "CONTCAR_7", "x.vasp"):
        (tmp_path / name).write_text(Poscar(salt(5)).get_str())
        assert edges(read_samples(tmp_path / name)) == [5]
    (tmp_path / "POSCAR").write_text("nothing of the kind")
    with pytest.raises(KldmError, match=r"POSCAR: it is no POSCAR, or is cut short"):
        read_samples(tmp_path / "POSCAR")


EMPTY = ["x.jsonl", "x.json", "x.extxyz", "x.csv", "x.zip", "x.cif", "POSCAR", "x.pt"]


@pytest.mark.parametrize("name", [*EMPTY, "x.jsonl.gz", "x.json.gz", "x.csv.gz", "x.extxyz.gz", "x.cif.gz"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe\x80 nonsense \n\n", b"PK\x03\x04 cut short"])
def test_hopeless_files_are_one_sentence_or_one_failure(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    found = outcome(tmp_path / name)
    if isinstance(found, str):
        assert found.startswith(str(tmp_path / name))
        assert "\n" not in found
    else:
        assert content
        raise AssertionError(f"{name} gives {found}")


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.extxyz", "x.cif"])
def test_truncated_gzip(tmp_path: Path, name: str) -> None:
    rows = [json.dumps({"structure": salt(a).as_dict()}) for a in range(3, 60)]
    text = "\n".join(["cif", *rows] if name == "x.csv" else rows)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode())[:-40])
    with pytest.raises(KldmError, match=r"cut short or damaged|cannot be read"):
        read_samples(tmp_path / f"{name}.gz")


def test_truncated_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.cif", cif(salt()))
    whole = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(whole[:-30])
    with pytest.raises(KldmError, match=r"not a zip file, or a damaged one; write it again"):
        read_samples(tmp_path / "x.zip")
    (tmp_path / "x.zip").write_bytes(whole.replace(b"_cell_length_a", b"_cell_length_x", 1))
    with pytest.raises(KldmError, match="not a zip file, or a damaged one"):
        read_samples(tmp_path / "x.zip")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"structure": null}\n{"structure": nul', r"x.jsonl: .*: 1 of them: the line is not JSON"),
        ("x.jsonl", "[" * 100_000, r"x.jsonl: the file is not JSON \(maximum recursion depth"),
        ("x.jsonl", '{"target": 1}\n{"target": 2}', r"x.jsonl:1: it has no 'structure' \(found: target\)"),
        ("x.jsonl", "7\n", r"x.jsonl: it is a number and not a structure; write pymatgen's Structure.as_dict\(\)"),
        ("x.jsonl", '\n{"target": "a", "structure": null}\n7', r"x.jsonl:2: .* whole numbers"),
        ("x.jsonl", '{"target": true, "structure": null}\n', r"x.jsonl: .* whole numbers"),
        ("x.jsonl", '{"target": 1.5, "structure": null}\n', r"x.jsonl: .* whole numbers"),
        ("x.jsonl", '{"target": 1, "candidate": -1, "structure": null}\n', r"x.jsonl: .* whole numbers"),
        ("x.json", '{"structure": nul', r"x.json: the file is not JSON"),
        ("x.json", "[]", r"x.json: it holds no structures"),
        ("x.json", "[7, [1]]", r"x.json, entry 0: it is a number and not a structure"),
        ("x.json", '{"a": 1}', r"x.json: it has no 'structure' \(found: a\)"),
        ("x.csv", "material_id,text\n1,2\n", r"x.csv: there is no column 'cif' \(found: material_id, text\)"),
        ("x.csv", "material_id,cif\n", r"x.csv: it holds no structures"),
        ("x.zip", "this is no zip", r"x.zip: not a zip file"),
        ("x.extxyz", "this is no xyz", r"x.extxyz:1: not an extended xyz file \('this is no xyz' is no number"),
        ("x.doc", "", r"x.doc: no samples are read from .doc files; give a folder of CIFs"),
        ("x.zip.gz", "", r"no samples are read from .gz files"),
    ],
)
def test_unreadable_files_are_one_sentence(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(KldmError, match=message):
        read_samples(tmp_path / name)


def test_folder_without_cifs(tmp_path: Path) -> None:
    with pytest.raises(KldmError, match=r"the folder holds no \.cif files; give the file itself"):
        read_samples(tmp_path)


@pytest.mark.parametrize("name", [*EMPTY, "x.jsonl.gz"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(KldmError, match="there is no such file or folder"):
        read_samples(tmp_path / name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["lattice", "sites", "matrix", "structure", "a", "species", "abc", "charge", "@class"])
GARBAGE = st.recursive(JSON, lambda inner: st.dictionaries(KEYS, inner, max_size=5), max_leaves=10)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(GARBAGE, min_size=1, max_size=4))
def test_garbage_structures_never_cost_the_others(tmp_path: Path, rows: list[Any]) -> None:
    lines = [json.dumps({"target": 7, "structure": row}) for row in rows]
    lines.insert(1, json.dumps({"target": 7, "structure": salt().as_dict()}))
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    found = read_samples(tmp_path / "x.jsonl")
    assert numbers(found) == [(7, row) for row in range(len(rows) + 1)]
    assert found[1].structure == salt()
    assert all(structural_validity(c.structure) and (c.structure or c.reason) for c in (found[0], *found[2:]))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | GARBAGE.map(json.dumps).map(str.encode))
def test_garbage_files_never_trace_back(tmp_path: Path, content: bytes) -> None:
    for name in ("x.jsonl", "x.json"):
        (tmp_path / name).write_bytes(content)
        found = outcome(tmp_path / name)
        if isinstance(found, str):
            assert found.startswith(str(tmp_path / name))
        else:
            assert all(c.structure is None for c in found)
