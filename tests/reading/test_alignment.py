"""Samples are placed on rows by labels, order or composition, with notes for the reader; references are read."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from kldm.data import Data
from kldm.errors import KldmError
from kldm.evaluation.results import write_samples
from kldm.interfaces import UNPLACED, Candidate
from kldm.reading import Alignment, Reference, SampleFile, align, read_file, read_reference

ELEMENTS = ("Li", "Na", "K", "Rb", "Cs")


def crystal(name: str, a: float = 4.0) -> Structure:
    """XCl in a cell of edge a; doubled if the name ends in 2."""
    symbol, units = name.rstrip("2"), 2 if name.endswith("2") else 1
    places = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
    unit_cell = Structure(Lattice.cubic(a), [symbol, "Cl"], places)
    return unit_cell.make_supercell([units, 1, 1], in_place=False)


def samples(
    names: Sequence[str | None], name: str = "x.jsonl", first: float = 4.0, ids: Sequence[str] = ()
) -> SampleFile:
    """A file without labels; its structures differ in the cell edge, first + row / 100."""
    rows = [
        Candidate(row, 0, None, "exploded") if salt is None else Candidate(row, 0, crystal(salt, first + row / 100))
        for row, salt in enumerate(names)
    ]
    places = tuple(f"{name}:{row}" for row in range(len(rows)))
    return SampleFile(Path(name), tuple(rows), places, tuple(ids) or ("",) * len(rows), labelled=False)


def labelled(
    numbers: Sequence[tuple[int, int]], name: str = "x.jsonl", element: str | None = None, ids: Sequence[str] = ()
) -> SampleFile:
    rows = [Candidate(t, c, crystal(element or ELEMENTS[t % 5])) for t, c in numbers]
    places = tuple(f"{name}:{row}" for row in range(len(rows)))
    return SampleFile(Path(name), tuple(rows), places, tuple(ids) or ("",) * len(rows), labelled=True)


def reference(names: Sequence[str | None], ids: Sequence[str] = ()) -> Reference:
    structures = tuple(None if salt is None else crystal(salt) for salt in names)
    blank = tuple("" for _ in names)
    return Reference("mine", structures, blank, tuple(ids) or blank, whole=False)


def where(alignment: Alignment) -> dict[tuple[int, int], int | None]:
    """The row of the file by target and candidate; None for a failure."""
    return {
        (c.target, c.candidate): None if c.structure is None else round((c.structure.lattice.b - 4) * 100)
        for c in alignment.candidates
    }


def test_labels_are_kept() -> None:
    found = align([labelled([(2, 1), (0, 0), (2, 0)])], reference(ELEMENTS))
    assert [(c.target, c.candidate) for c in found.candidates] == [(0, 0), (2, 0), (2, 1)]
    assert found.rule == "Rows are placed by the target that they carry."
    assert (found.notes, found.unplaced) == ((), ())


def test_an_unplaced_row_leaves_the_ids_of_the_others_to_count() -> None:
    file = labelled([(1, 0), (2, 0), (0, 0)], ids=["c", "b", ""])
    file = attrs.evolve(file, candidates=(*file.candidates[:2], Candidate(UNPLACED, 2, None, "cut short")))
    found = align([file], reference(["Na", "K", "Na"], ids=["a", "b", "c"]))
    assert [(c.target, c.candidate) for c in found.candidates] == [(1, 0), (2, 0)]
    assert [c.reason for c in found.unplaced] == ["cut short"]
    assert any("the ids were taken" in note for note in found.notes)


def test_labels_out_of_range_or_used_twice() -> None:
    with pytest.raises(KldmError, match=r"x.jsonl:1: it answers target 5; the reference has rows 0 to 4"):
        align([labelled([(4, 0), (5, 0)])], reference(ELEMENTS))
    with pytest.raises(KldmError, match=r"x.jsonl:2: target 1 has a candidate 0 in x.jsonl:0 too"):
        align([labelled([(1, 0), (1, 1), (1, 0)])], reference(ELEMENTS))
    with pytest.raises(KldmError, match="the reference is empty"):
        align([labelled([(0, 0)])], reference([]))


def test_order_decides_where_counts_agree() -> None:
    found = align([samples(["Li", None, "K2"])], reference(["Li", "Na", "K"]))
    assert where(found) == {(0, 0): 0, (1, 0): None, (2, 0): 2}
    assert "by their order" in found.rule
    assert found.notes == ()
    assert found.candidates[1].reason == "exploded"


def test_order_with_k_candidates() -> None:
    passes = align([samples(["Li", "Na", "K", "Li", "Na", "K"])], reference(["Li", "Na", "K"]))
    assert where(passes) == {(t, c): 3 * c + t for t in range(3) for c in range(2)}
    assert "2 passes over the reference follow each other" in passes.rule
    assert passes.notes == ()
    blocks = align([samples(["Li", "Li", None, "Na", "K", "K"])], reference(["Li", "Na", "K"]))
    assert where(blocks) == {(t, c): 2 * t + c for t in range(3) for c in range(2)} | {(1, 0): None}
    assert "the 2 candidates of each target stand together" in blocks.rule
    assert blocks.notes == ()


def test_order_that_cannot_be_told_is_said() -> None:
    found = align([samples(["Li"] * 4)], reference(["Li", "Li"]))
    assert where(found) == {(t, c): 2 * c + t for t in range(2) for c in range(2)}
    (note,) = found.notes
    assert "the compositions do not tell whether the 2 candidates of a target stand together" in note


def test_another_reference_is_pointed_out() -> None:
    found = align([samples(["Li", "Na", "K"])], reference(["Cs", "Rb", "K"]))
    assert "by their order" in found.rule
    (note,) = found.notes
    assert note == (
        "x.jsonl: only 1 of 3 samples have the composition of the row they are placed at; is mine the right reference, "
        "and in the order of the samples?"
    )
    assert len(align([labelled([(0, 0), (1, 0)], element="Cs")], reference(ELEMENTS)).notes) == 1
    assert align([samples(["Li", "Na", "Cs", None])], reference(["Li", "Na", "K", None])).notes == ()


def test_composition_decides_otherwise() -> None:
    names = ["K", "Li2", None, "Na", "Li", "Li", "Rb"]
    found = align([samples(names)], reference(["Li", "K", "Li", "Cs"]))
    assert where(found) == {(1, 0): 0, (0, 0): 1, (2, 0): 4, (0, 1): 5}
    assert found.rule == (
        "Rows are placed by their composition: they carry no target, and their number, 7, is no multiple of the "
        "reference's, 4."
    )
    assert [(c.target, c.candidate, c.reason) for c in found.unplaced] == [
        (UNPLACED, 2, "exploded"),
        (UNPLACED, 3, "no row of the reference has its composition or its id"),
        (UNPLACED, 6, "no row of the reference has its composition or its id"),
    ]
    assert found.unplaced[1].structure is not None
    assert found.notes == (
        "x.jsonl: 3 of 7 samples answer no row of the reference (1 are no structures, 2 have a composition that it "
        "lacks).",
        "x.jsonl: 1 compositions have several rows in the reference, which were taken in turn.",
    )


NAMES = st.lists(st.sampled_from([*ELEMENTS, None]), min_size=1, max_size=7)


@given(names=NAMES, wanted=NAMES)
def test_nothing_is_lost(names: list[str | None], wanted: list[str | None]) -> None:
    found = align([samples(names)], reference(wanted))
    assert len(found.candidates) + len(found.unplaced) == len(names)
    assert len({(c.target, c.candidate) for c in found.candidates}) == len(found.candidates)
    assert all(0 <= c.target < len(wanted) for c in found.candidates)
    rows = [round((c.structure.lattice.b - 4) * 100) for c in (*found.candidates, *found.unplaced) if c.structure]
    assert sorted(rows) == [row for row, name in enumerate(names) if name is not None]


@given(names=st.permutations(ELEMENTS), seed=st.integers(0, 9))
def test_shuffled_samples_find_their_composition(names: list[str], seed: int) -> None:
    drawn = random.Random(seed).choices(names, k=7)
    found = align([samples(drawn)], reference(names))
    assert not found.unplaced
    for c in found.candidates:
        assert c.structure is not None
        assert c.structure.composition.reduced_formula == f"{names[c.target]}Cl"


def test_several_files_are_seeds() -> None:
    files = [
        samples(["Li", "Na"], "a.jsonl"),
        labelled([(1, 7), (0, 3)], "b.jsonl"),
        labelled([(1, 0)], "c.jsonl"),
    ]
    found = align(files, reference(["Li", "Na"]))
    assert [(c.target, c.candidate) for c in found.candidates] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert found.rule.startswith("a.jsonl: Rows are placed by their order")
    assert found.rule.endswith("File f of 3 is candidate f of every target.")
    assert found.notes == ("c.jsonl has no candidate for 1 of 2 targets; they count as not matched.",)


def test_a_seed_with_several_candidates_is_refused() -> None:
    files = [samples(["Li", "Na"], "a.jsonl"), labelled([(0, 0), (1, 0), (1, 1)], "b.jsonl")]
    with pytest.raises(KldmError, match=r"b.jsonl: it has 2 candidates for target 1; several files are several"):
        align(files, reference(["Li", "Na"]))


def lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_reference_rows_are_placed(tmp_path: Path) -> None:
    no_cell = crystal("K").as_dict()
    no_cell["lattice"]["matrix"] = None
    lithium = {"target": 0, "structure": crystal("Li").as_dict(), "material_id": "mp-5"}
    rows = [{"target": 2, "structure": no_cell}, lithium]
    rows.append({"target": 1, "structure": crystal("Na2").as_dict()})
    found = read_reference(lines(tmp_path / "x.jsonl", rows))
    assert found.formulas == ("LiCl", "NaCl", None)
    assert found.ids == ("mp-5", "1", "2")
    assert found.reasons == ("", "", "no cell")
    assert [structure is None for structure in found.structures] == [False, False, True]
    assert len(found.notes()) == 1
    assert "1 of 3 rows of the reference" in found.notes()[0]
    assert "the first is row 2: no cell" in found.notes()[0]
    for row in rows:
        del row["target"]
    assert read_reference(lines(tmp_path / "x.jsonl", rows)).formulas == (None, "LiCl", "NaCl")


def test_reference_places_taken_twice_or_left_empty(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", [{"target": t, "structure": None} for t in (0, 1, 1)])
    with pytest.raises(KldmError, match=r"x.jsonl:3: target 1 is that of .*x.jsonl:2 too"):
        read_reference(path)
    lines(path, [{"target": t, "structure": None} for t in (0, 3)])
    with pytest.raises(KldmError, match=r"no row has target 1, although 3 is used"):
        read_reference(path)


def test_reference_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_reference("aflow_prototypes/test")
    store = Data(name="aflow_prototypes").load("test")
    assert (found.name, found.ids, len(found)) == ("aflow_prototypes/test", store.ids, len(store))
    assert [len(structure) if structure else 0 for structure in found.structures] == list(store.sizes)
    assert found.notes() == ()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "aflow_prototypes").mkdir()
    lines(tmp_path / "aflow_prototypes" / "test", [])
    with pytest.raises(KldmError, match=r"no samples are read from such files"):  # what exists comes first
        read_reference("aflow_prototypes/test")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mp_20", "neither a file nor DATASET/SPLIT; write it like mp_20/test"),
        ("mp_20/tset", "neither a file nor DATASET/SPLIT"),
        ("mp_21/test", "did you mean mp_20|did you mean 'mp_20'"),
        ("missing.jsonl", "reference missing.jsonl: neither a file nor"),
    ],
)
def test_references_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KldmError, match=message):
        read_reference(source)


def test_samples_of_ours_find_their_rows(tmp_path: Path) -> None:
    wanted = reference(["Li", "Na"])
    made = tuple(Candidate(t, c, crystal(("Li", "Na")[t], 4 + c / 100)) for t in range(2) for c in range(2))
    write_samples(tmp_path, made)
    for name in ("samples.jsonl", "samples.extxyz", "structures.zip"):
        found = align([read_file(tmp_path / name)], wanted)
        assert where(found) == {(t, c): c for t in range(2) for c in range(2)}
        assert found.notes == ()
