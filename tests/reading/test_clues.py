"""What names say of the rows that samples answer: ids, numbers, and contradictions between them, order and content."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.io.cif import CifWriter

from kldm.errors import KldmError
from kldm.reading import Reference, SampleFile, align, read_file, read_reference
from kldm.reading.clues import BY_ID
from tests.reading.test_alignment import crystal, labelled, reference, samples, where

IDS = ("mp-66", "mp-48", "mp-47", "mp-99", "mp-7")
SALTS = ("Li", "Na", "K", "Rb", "Cs")
NUMBERED = "Rows are placed by the numbers in their names, counted from {}."


def bundle(salts: Sequence[str | None], names: Sequence[str]) -> SampleFile:
    return samples(salts, "x.zip", ids=names)


@pytest.mark.parametrize(
    "names",
    [
        ("mp-7", "mp-99", "mp-66", "mp-47", "mp-48"),
        ("mp-7__1", "mp-99__1", "mp-66__1", "mp-47__1", "mp-48__1"),
        ("mp-7_0.cif", "mp-99_0.cif", "mp-66_0.cif", "mp-47_0.cif", "mp-48_0.cif"),
        ("gen_mp-7", "gen_mp-99", "gen_mp-66", "gen_mp-47", "gen_mp-48"),
        ("0_mp-7", "1_mp-99", "2_mp-66", "3_mp-47", "4_mp-48"),
        ("mp-7_CsCl", "mp-99_RbCl", "mp-66_LiCl", "mp-47_KCl", "mp-48_NaCl"),
        ("mp-7~0", "mp-99~0", "mp-66~0", "mp-47~0", "mp-48~0"),
        ("(mp-7)", "(mp-99)", "(mp-66)", "(mp-47)", "(mp-48)"),
        ("mp-7/out", "mp-99/out", "mp-66/out", "mp-47/out", "mp-48/out"),
        ("MP-7", "MP-99", "MP-66", "MP-47", "MP-48"),
        ("mp-00007", "mp-00099", "mp-00066", "mp-00047", "mp-00048"),
    ],
)
def test_ids_in_another_order(names: Sequence[str]) -> None:
    """One composition, so that nothing else could tell; nothing is noted."""
    found = align([samples(["Li"] * 5, ids=names)], reference(["Li"] * 5, IDS))
    assert where(found) == {(4, 0): 0, (3, 0): 1, (0, 0): 2, (2, 0): 3, (1, 0): 4}
    assert (found.rule, found.notes) == (BY_ID, ())


def test_candidates_of_ids() -> None:
    names = [f"{name}__{n}" for n in (2, 1) for name in reversed(IDS[:3])]
    found = align([samples(["Li"] * 6, ids=names)], reference(["Li"] * 3, IDS[:3]))
    assert where(found) == {(t, c): 3 * (1 - c) + 2 - t for t in range(3) for c in range(2)}
    assert found.notes == ()
    lacking = align([samples(["Li"] * 5, ids=[*names[:2], *names[3:]])], reference(["Li"] * 3, IDS[:3]))
    assert (0, 1) not in where(lacking), "the second candidate of mp-66 failed, and the first is still the first"
    assert (0, 0) in where(lacking)


def test_candidates_of_ids_without_numbers_are_counted() -> None:
    names = ["mp-48", "mp-66", "mp-48", "mp-48"]
    found = align([samples(["Li"] * 4, ids=names)], reference(["Li"] * 3, IDS[:3]))
    assert where(found) == {(1, 0): 0, (0, 0): 1, (1, 1): 2, (1, 2): 3}
    assert found.notes == (
        "x.jsonl: There are 1 to 3 samples of an id, which are its candidates in the order of the file.",
    )
    seeds = [f"{name}_{seed}" for name in IDS[:2] for seed in (1001, 7)]
    assert where(align([samples(["Li"] * 4, ids=seeds)], reference(["Li"] * 2, IDS[:2]))) == {
        (0, 1): 0,
        (0, 0): 1,
        (1, 1): 2,
        (1, 0): 3,
    }


def test_running_numbers_behind_ids_are_no_candidates() -> None:
    names = ["mp-7_0", "mp-99_1", "mp-66_2", "mp-47_3", "mp-48_4"]
    found = align([samples(["Li"] * 5, ids=names)], reference(["Li"] * 5, IDS))
    assert where(found) == {(4, 0): 0, (3, 0): 1, (0, 0): 2, (2, 0): 3, (1, 0): 4}
    (note,) = found.notes
    assert "are all different, and are not taken for numbers of candidates" in note


def test_samples_of_more_rows_than_the_reference_has() -> None:
    """Only the samples that answer a row can tell whether names or order are right."""
    found = align([samples(["Li"] * 4, ids=("mp-48", "mp-1", "mp-66", ""))], reference(["Li"] * 2, IDS[:2]))
    assert where(found) == {(1, 0): 0, (0, 0): 2}
    assert len(found.unplaced) == 2
    assert [note.split(" samples ")[1] for note in found.notes] == [
        "have an id that the reference lacks, such as 'mp-1'; they answer no row.",
        "have no id, although others have; they answer no row.",
    ]


def test_seeds_in_folders() -> None:
    names = [f"seed{seed}/{n}" for seed in (0, 1) for n in (2, 0, 1)]
    found = align([bundle(["Li"] * 6, names)], reference(["Li"] * 3))
    assert where(found) == {(t, c): 3 * c + (t + 1) % 3 for t in range(3) for c in range(2)}


def test_the_name_of_a_single_file_is_no_number() -> None:
    found = align([samples(["Li"], "run/text2.cif", ids=["text2"])], reference(["Li"]))
    assert where(found) == {(0, 0): 0}


@pytest.mark.parametrize("key", ["material_id", "mp_id", "identifier", "label", "sample_idx", "index", "", "target"])
def test_any_column_may_hold_the_names(tmp_path: Path, key: str) -> None:
    numbered = key in ("sample_idx", "index", "", "target")
    order, names = (2, 0, 1), range(3) if numbered else IDS[:3]
    structures = [crystal("Li", 4 + row / 100) for row in range(3)]
    text = f"{key},cif\n" + "".join(f'{names[row]},"{CifWriter(structures[row])}"\n' for row in order)
    (tmp_path / "x.csv").write_text(text)
    records = [{key: names[row], "structure": structures[row].as_dict()} for row in order]
    (tmp_path / "x.json").write_text(json.dumps(records))
    for name in ("x.csv", "x.json"):
        found = align([read_file(tmp_path / name)], reference(["Li"] * 3, IDS[:3]))
        assert where(found) == {(row, 0): row for row in range(3)}, name


def test_a_property_called_target_is_left_out(tmp_path: Path) -> None:
    text = f'target,cif\n0.5,"{CifWriter(crystal("Li"))}"\n'
    (tmp_path / "x.csv").write_text(text)
    file = read_file(tmp_path / "x.csv")
    assert not file.labelled
    assert "its 'target' is no whole number in every row, and is left out" in file.notes[0]


def test_ids_are_requests() -> None:
    found = align([samples(["Li"] * 2, ids=("mp-7", "mp-47"))], reference(["Li"] * 5, IDS), requested=True)
    assert found.rows == (2, 4)
    assert where(found) == {(4, 0): 0, (2, 0): 1}
    assert found.notes == ()
    with pytest.raises(KldmError, match="does not say which rows of the reference its samples answer"):
        align([samples(["Li"] * 5)], reference(["Li"] * 5, IDS), requested=True)


def test_several_files_with_ids() -> None:
    files = [samples(["Li"] * 5, f"{n}.json", ids=ids) for n, ids in enumerate((IDS, IDS[::-1]))]
    found = align(files, reference(["Li"] * 5, IDS))
    assert where(found) == {(t, 0): t for t in range(5)} | {(t, 1): 4 - t for t in range(5)}


def test_ids_that_the_reference_lacks() -> None:
    known = align([samples(["Li"] * 4, ids=("mp-7", "mp-1", "", "mp-66"))], reference(["Li"] * 5, IDS))
    assert where(known) == {(4, 0): 0, (0, 0): 3}
    assert [candidate.reason for candidate in known.unplaced] == [
        "no row of the reference has its composition or its id"
    ] * 2
    assert "1 of 4 samples have an id that the reference lacks, such as 'mp-1'" in known.notes[0]
    with pytest.raises(KldmError, match=r"has only 1 of the 3 ids of its samples, and lacks 'mp-1'; is it the right"):
        align([samples(["Li"] * 3, ids=("mp-7", "mp-1", "mp-2"))], reference(["Li"] * 5, IDS))
    (note,) = align(
        [samples(["Li"] * 5, ids=("mp-1", "mp-2", "mp-3", "mp-4", "mp-5"))], reference(["Li"] * 5, IDS)
    ).notes
    assert (
        note
        == "x.jsonl: the ids of its samples, such as 'mp-1', are not among those of the reference, such as 'mp-66'."
    )
    other = align([samples(["Li"] * 5, ids=["image0"] * 5)], reference(["Li"] * 5, IDS))
    assert ("by their order" in other.rule, other.notes) == (True, ())


def test_ids_that_several_rows_have() -> None:
    twice = ("a-1", "a-2", "a-1")
    with pytest.raises(KldmError, match="the id 'a-1' of a sample is that of 2 rows of the reference"):
        align([samples(["Li"] * 3, ids=("a-2", "a-1", "a-1"))], reference(["Li"] * 3, twice))
    assert where(align([samples(["Li"] * 3, ids=twice)], reference(["Li"] * 3, twice))) == {(t, 0): t for t in range(3)}
    together = [name for name in twice for _ in range(2)]
    assert where(align([samples(["Li"] * 6, ids=together)], reference(["Li"] * 3, twice))) == {
        (0, 0): 0,
        (0, 1): 1,
        (1, 0): 2,
        (1, 1): 3,
        (2, 0): 4,
        (2, 1): 5,
    }
    with pytest.raises(KldmError, match="'mp-7_01' and 'mp-7_1' are the same candidate of one target"):
        align([samples(["Li"] * 3, ids=("mp-7_1", "mp-7_01", "mp-66_1"))], reference(["Li"] * 5, IDS))


def test_ids_against_compositions_and_order() -> None:
    names = ("mp-7", "mp-99", "mp-66", "mp-47", "mp-48")
    told = "its names and its order contradict each other: 0 of 5 samples have the composition of the row that their"
    with pytest.raises(KldmError, match=told):
        align([samples(["Li", "Na", "Rb", "K", "Cs"], ids=names)], reference(["Li", "Na", "Rb", "K", "Cs"], IDS))
    found = align([samples(["Li", "Na", "K", "Rb", "Cs"], ids=IDS)], reference(["Rb", "K", "Li", "Na", "Li"], IDS))
    assert "only 0 of 5 samples have the composition of the row they are placed at" in found.notes[0]
    right = align([samples(SALTS, ids=names)], reference(["K", "Cs", "Rb", "Na", "Li"], IDS))
    assert {c.target for c in right.candidates} == set(range(5))
    assert right.notes == ()


def test_row_numbers_are_no_ids() -> None:
    """A table numbers its rows, and the reference has ids that are numbers, in an order of its own."""
    numbers = ("0", "1", "2", "3", "4")
    for ids in (numbers, ("11603", "4", "7", "1", "90"), IDS):
        found = align([samples(["Li"] * 5, "x.csv", ids=numbers)], reference(["Li"] * 5, ids))
        assert where(found) == {(t, 0): t for t in range(5)}
        assert ("by their order" in found.rule, found.notes) == (True, ())
    shuffled = ("3", "0", "4", "1", "2")
    with pytest.raises(KldmError, match="its names and its order contradict each other"):
        align([samples(["Li"] * 5, "x.csv", ids=numbers)], reference(["Li"] * 5, shuffled))
    told = align([samples(SALTS, "x.csv", ids=numbers)], reference(["Rb", "Li", "Cs", "Na", "K"], shuffled))
    assert told.rule == BY_ID
    assert align([samples(["Li"] * 4, "x.csv", ids=numbers[:4])], reference(["Li"] * 5)).rule.startswith(
        "Rows are placed by their composition"
    ), "rows of a table that were left out cannot be told from their numbers"


@pytest.mark.parametrize("form", ["crystal_{}", "{}", "gen-{}", "{:05d}", "sample{}.cif", "{}_LiCl"])
def test_numbers_with_gaps(form: str) -> None:
    names = [form.format(n) for n in (0, 3, 4)]
    found = align([bundle(["Li"] * 3, names)], reference(["Li"] * 6, [*IDS, "mp-1"]))
    assert where(found) == {(0, 0): 0, (3, 0): 1, (4, 0): 2}
    assert found.rule == NUMBERED.format(0)
    assert found.notes == ()


def test_numbers_count_from_0_or_1() -> None:
    gaps = ["gen_1", "gen_2", "gen_4"]
    assert align([bundle(["Li"] * 3, gaps)], reference(["Li"] * 4)).rule == NUMBERED.format(1), "4 is the last row"
    for salts, base in ((("Na", "K", "Cs"), 0), (("Li", "Na", "Rb"), 1)):
        found = align([bundle(salts, gaps)], reference(SALTS))
        assert found.rule == NUMBERED.format(base)
        assert [c.target for c in found.candidates] == [n - base for n in (1, 2, 4)]
    with pytest.raises(KldmError, match=r"can be read in several ways \(Rows are placed .* from 0. or .* from 1.\)"):
        align([bundle(["Li"] * 3, gaps)], reference(["Li"] * 5))
    whole = align([bundle(["Li"] * 4, [f"gen_{n}" for n in (1, 2, 3, 4)])], reference(["Li"] * 4))
    assert "by their order" in whole.rule


def test_numbers_of_rows_and_candidates() -> None:
    names = [f"{t}_{c}" for t in (0, 2, 3) for c in (1, 2)]
    found = align([bundle(["Li"] * 6, names)], reference(["Li"] * 4))
    assert where(found) == {(t, c): 2 * n + c for n, t in enumerate((0, 2, 3)) for c in (0, 1)}
    batches = [f"{batch}_{n}" for batch in (0, 1) for n in range(5)]
    found = align([bundle(SALTS * 2, batches)], reference(SALTS))
    assert found.rule.endswith("the first is that of the candidate.")
    with pytest.raises(KldmError, match="can be read in several ways"):
        align([bundle(["Li"] * 9, [*batches[:7], *batches[8:]])], reference(["Li"] * 5))


def test_numbers_of_several_passes_with_gaps() -> None:
    salts = [*SALTS, *SALTS]
    names = [f"crystal_{n}" for n in range(10)]
    del salts[3], names[3]
    found = align([bundle(salts, names)], reference(SALTS))
    assert {(c.target, c.candidate) for c in found.candidates} == {(n % 5, n // 5) for n in range(10) if n != 3}
    assert found.rule.endswith("from 0; 2 passes over the reference follow each other.")


@pytest.mark.parametrize(
    "names",
    [
        ("LiCl_0", "NaCl_0", "KCl_0"),
        ("mp-812", "mp-90221", "mp-4"),
        ("LiCl_0", "LiCl_1", "NaCl_2"),
        ("H2O", "H2S", "H2Se"),
        ("C2", "C3", "C1"),
        ("7", "7", "8"),
    ],
)
def test_other_numbers_are_no_rows(names: Sequence[str]) -> None:
    found = align([bundle(["Li", "Na", "K"], names)], reference(["K", "Li", "Na", "Rb"]))
    assert found.rule.startswith("Rows are placed by their composition")
    assert {c.target for c in found.candidates} == {0, 1, 2}


def test_targets_against_ids() -> None:
    targets = [(0, 0), (1, 0), (2, 0)]
    assert align([labelled(targets, ids=IDS[:3])], reference(SALTS, IDS)).notes == ()
    told = r"x.jsonl:0: it answers target 0, but its id 'mp-48' is that of row 1; give the reference that the samples"
    with pytest.raises(KldmError, match=told):
        align([labelled(targets, ids=("mp-48", "mp-66", "mp-47"))], reference(SALTS, IDS))
    found = align([labelled(targets, ids=("mp-47", "mp-66", "mp-48"))], reference(("Na", "K", "Li"), IDS[:3]))
    assert [c.target for c in found.candidates] == [0, 1, 2]
    assert found.rule == BY_ID
    told = "x.jsonl:0: it answers target 0, but its id 'mp-47' is that of row 2; the ids were taken."
    assert found.notes[0].startswith(told)
    filtered = align([labelled([(3, 0), (4, 0)], ids=IDS[:2])], reference(("Rb", "Cs"), IDS[:2]))
    assert [c.target for c in filtered.candidates] == [0, 1], "the reference has fewer rows than that of the samples"
    assert align([labelled(targets, ids=("a", "b", "c"))], reference(SALTS, IDS)).notes == ()


@given(
    names=st.lists(st.text("0123_-mp a.", max_size=6), min_size=1, max_size=6),
    ids=st.lists(st.text("0123_-mp a.", max_size=4), min_size=1, max_size=5),
    data=st.data(),
)
def test_whatever_the_names_nothing_is_lost(names: list[str], ids: list[str], data: st.DataObject) -> None:
    salts = st.sampled_from([*SALTS[:2], None])
    given_salts = data.draw(st.lists(salts, min_size=len(names), max_size=len(names)))
    wanted = data.draw(st.lists(salts, min_size=len(ids), max_size=len(ids)))
    try:
        found = align([bundle(given_salts, names)], reference(wanted, ids))
    except KldmError:
        return
    assert len(found.candidates) + len(found.unplaced) == len(names)
    assert len({(c.target, c.candidate) for c in found.candidates}) == len(found.candidates)
    assert all(0 <= c.target < len(ids) and c.candidate >= 0 for c in found.candidates)


def test_files_with_ids_on_both_sides(tmp_path: Path) -> None:
    """Case by case the formats carry the names as far as here."""
    cells = {name: crystal("Li", 4 + n / 100) for n, name in enumerate(IDS)}
    texts = {name: str(CifWriter(cell)) for name, cell in cells.items()}

    def written(name: str, order: Sequence[str]) -> Path:
        path = tmp_path / name
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                for each in order:
                    archive.writestr(f"{each}__1.cif", texts[each])
        elif path.suffix == ".csv":
            rows = [f'{row},{each},"{texts[each]}"' for row, each in enumerate(order)]
            path.write_text("\n".join([",material_id,cif", *rows]))
        elif path.suffix == ".jsonl":
            rows = [json.dumps({"material_id": each, "structure": cells[each].as_dict()}) for each in order]
            path.write_text("\n".join(rows))
        else:
            path.write_text(json.dumps({each: cells[each].as_dict() for each in order}))
        return path

    references: list[Reference] = [read_reference(written(f"ref{end}", IDS)) for end in (".csv", ".jsonl", ".json")]
    for end in (".csv", ".jsonl", ".json", ".zip"):
        file = read_file(written(f"gen{end}", IDS[::-1]))
        for each in references:
            found = align([file], each)
            assert found.rule == BY_ID
            pairs = [(c.structure, each.structures[c.target]) for c in found.candidates]
            assert all(a is not None and b is not None and abs(a.volume - b.volume) < 1e-3 for a, b in pairs)
            assert found.candidates[0].source.startswith(str(tmp_path))
