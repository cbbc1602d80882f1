import csv
import gzip
import logging
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from kldm.data import read_csv
from kldm.data.arrays import too_close
from kldm.data.cache import load_store, save_store
from kldm.data.convert import to_structures
from kldm.data.parsing import parse_cif, parse_texts
from kldm.data.published import read_columns, read_rows
from kldm.errors import KldmError

SKEWED = Structure(
    Lattice.from_parameters(4, 5, 9, 95, 50, 62), ["Na", "Cl"], [[0.0, 0.0, 0.0], [0.5, 0.4, 0.999999999]]
)


def write(path: Path, rows: list[str], header: str = ",material_id,cif", ids: bool = True) -> Path:
    quoted = [cif.replace('"', '""') for cif in rows]
    lines = [f'{n},mp-{n},"{cif}"' if ids else f'{n},"{cif}"' for n, cif in enumerate(quoted)]
    text = "\n".join([header, *lines]) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def cif_of(structure: Structure) -> str:
    return str(structure.to(fmt="cif"))


def test_cells_are_reduced_and_coordinates_inside(tmp_path: Path) -> None:
    parsed = read_csv(write(tmp_path / "one.csv", [cif_of(SKEWED)]))
    store = parsed.store
    reduced = SKEWED.get_reduced_structure()
    a, b, c = store.lattice[0, :3].tolist()
    assert a <= b <= c
    np.testing.assert_allclose(sorted((a, b, c)), sorted(reduced.lattice.abc), rtol=1e-6)
    np.testing.assert_allclose(
        np.sort(np.degrees(store.lattice[0, 3:].numpy())), np.sort(reduced.lattice.angles), rtol=1e-5
    )
    assert store.fractional.dtype == store.lattice.dtype == torch.float32
    assert store.species.dtype == torch.int64
    assert ((store.fractional >= 0) & (store.fractional < 1)).all()
    assert store.ids == ("mp-0",)
    matcher = StructureMatcher(ltol=0.001, stol=0.001, angle_tol=0.01, primitive_cell=False, scale=False)
    assert matcher.fit(to_structures(store)[0], SKEWED)


def test_reduced_cells_of_random_ones_are_the_same_crystals() -> None:
    rng = np.random.default_rng(0)
    matcher = StructureMatcher(ltol=0.01, stol=0.01, angle_tol=0.1, primitive_cell=False, scale=False)
    for _ in range(20):
        matrix = np.eye(3) * [3, 4, 5] + rng.uniform(-1, 1, (3, 3))
        sheared = np.array([[1, 1, 0], [0, 1, 2], [0, 0, 1]]) @ matrix
        given = Structure(Lattice(sheared), ["Li", "Fe", "O"], rng.uniform(size=(3, 3)))
        arrays = parse_cif(cif_of(given))
        assert not isinstance(arrays, str)
        lattice = Lattice.from_parameters(*arrays[1][:3], *np.degrees(arrays[1][3:]))
        assert lattice.volume == pytest.approx(given.volume, rel=1e-5)
        assert matcher.fit(Structure(lattice, ["Li", "Fe", "O"], arrays[0]), given)


def test_gzip_and_ids_by_row_number(tmp_path: Path) -> None:
    path = write(tmp_path / "two.csv.gz", [cif_of(SKEWED)] * 2, header=",cif", ids=False)
    assert read_csv(path).store.ids == ("0", "1")


def bad_rows() -> list[tuple[str, str]]:
    good = cif_of(SKEWED)
    disordered = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    return [
        ("", "it is empty"),
        ("no crystal", "there is no line that begins with data_"),
        (good.replace("Cl", "Qq"), "'Qq' is no element"),
        (cif_of(disordered), "disordered"),
        (good.replace("4.00000000", "nan"), "the cell holds a number that is not finite"),
        (cif_of(Structure(Lattice.cubic(4), ["Md"], [[0, 0, 0]])), "atomic number 101"),
    ]


@pytest.mark.parametrize(("cif", "reason"), bad_rows())
def test_bad_row_gives_a_reason(cif: str, reason: str) -> None:
    result = parse_cif(cif)
    assert isinstance(result, str)
    assert reason in result
    assert "\n" not in result


def test_bad_row_is_reported_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    simple = cif_of(Structure(Lattice.cubic(3), ["Po"], [[0, 0, 0]]))
    path = write(tmp_path / "many.csv", [simple] * 57 + ["broken"] + [simple] * 42)
    parsed = read_csv(path, workers=1)
    assert len(parsed.store) == 99
    assert "mp-57" not in parsed.store.ids
    assert [(skipped.row, skipped.id) for skipped in parsed.skipped] == [(57, "mp-57")]
    with caplog.at_level(logging.WARNING, "kldm.data"):
        parsed.report(str(path))
    assert f"{path}: row 57 (mp-57) skipped: " in caplog.text
    assert f"{path}: 1 of 100 rows skipped" in caplog.text


def test_atoms_on_top_of_each_other_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Such crystals are kept, and the report comes again when they are taken from the cache."""
    close = cif_of(Structure(Lattice.cubic(4), ["Na", "Cl"], np.array([[0, 0, 0.99], [0, 0, 0.1]])))
    parsed = read_csv(write(tmp_path / "x.csv", [cif_of(SKEWED), close, close]), workers=1)
    assert (len(parsed.store), parsed.overlapping) == (3, ("mp-1", "mp-2"))
    save_store(tmp_path / "x.safetensors", parsed)
    with caplog.at_level(logging.WARNING, "kldm.data"):
        load_store(tmp_path / "x.safetensors").report("x.csv")
    assert "x.csv: 2 of 3 crystals have atoms closer than 0.5 angstrom (the first is mp-1)" in caplog.text


@pytest.mark.parametrize("skew", [0, 7])
def test_close_atoms_are_found_in_any_cell(skew: int) -> None:
    """Of one crystal in several cells; distances through the faces and to an atom's own images count."""
    cell = np.array([[1, skew, 0], [0, 1, 2 * skew], [0, 0, 1]])
    for cartesian, close in (([0, 0, 3.6], True), ([0.3, 0.3, 3.9], True), ([0, 0, 3.4], False), ([2, 2, 2], False)):
        positions = np.array([[0, 0, 0], cartesian]) @ np.linalg.inv(cell @ (np.eye(3) * 4))
        assert too_close(cell @ (np.eye(3) * 4), positions) == close
    assert too_close(np.diag([4, 4, 0.4]), np.zeros((1, 3)))
    assert not too_close(np.diag([4, 4, 0.6]), np.zeros((1, 3)))


def test_more_than_one_percent_is_an_error(tmp_path: Path) -> None:
    simple = cif_of(Structure(Lattice.cubic(3), ["Po"], [[0, 0, 0]]))
    path = write(tmp_path / "many.csv", [simple] * 97 + ["broken"] * 2)
    with pytest.raises(KldmError, match=r"many.csv: 2 of 99 rows cannot be read, the first is row 97 \(mp-97\): "):
        read_csv(path, workers=1)


def test_files_that_are_no_data(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(KldmError, match=r"no column 'cif' \(found: a, b\)"):
        read_csv(path)
    path.write_text("")
    with pytest.raises(KldmError, match=r"no column 'cif' \(found: nothing\)"):
        read_csv(path)
    path.write_text("cif\n")
    with pytest.raises(KldmError, match="0 of 0 rows"):
        read_csv(path)
    path.write_bytes(b"cif\n\xff\xfe\n")
    with pytest.raises(KldmError, match="it is not UTF-8; save it as UTF-8"):
        read_csv(path)
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(write(tmp_path / "whole.csv.gz", [cif_of(SKEWED)] * 3).read_bytes()[:-30])
    with pytest.raises(KldmError, match="cannot be read"):
        read_csv(cut)
    with pytest.raises(KldmError, match="cannot be read"):
        read_csv(tmp_path / "absent.csv")


def test_workers_give_the_same_in_the_same_order() -> None:
    lengths = [3 + 0.01 * n for n in range(130)]
    cifs = [cif_of(Structure(Lattice.cubic(a), ["Po"], [[0, 0, 0]])) for a in lengths]
    for workers in (1, 2):
        results = [row for row in parse_texts(parse_cif, cifs, "test", workers=workers) if not isinstance(row, str)]
        assert [float(row[1][0]) for row in results] == pytest.approx(lengths, rel=1e-6)
    assert all(before < after for before, after in pairwise(lengths))


def test_first_rows_of_perov_5(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "perov_5" / "val.csv.gz"
    if not path.exists():
        pytest.skip("no perov_5 there")
    ids, cifs, _ = read_rows(path)
    assert len(ids) == len(cifs) == 3787
    store = read_csv(write(tmp_path / "few.csv", cifs[:40]), workers=1).store
    assert set(store.sizes) == {5}
    for text, structure in zip(cifs, to_structures(store), strict=False):
        given = Structure.from_str(text, fmt="cif")
        assert structure.volume == pytest.approx(given.volume, rel=1e-5)
        assert structure.composition == given.composition
        assert np.sort(structure.distance_matrix, None) == pytest.approx(np.sort(given.distance_matrix, None), abs=1e-4)


def table(path: Path, *columns: tuple[str, list[str]]) -> Path:
    """A CSV with these columns, and a CIF text of several lines as the second column."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([columns[0][0], "cif", *(name for name, _ in columns[1:])])
        for first, *others in zip(*(cells for _, cells in columns), strict=True):
            writer.writerow([first, "a cell\nof three\nlines", *others])
    return path


def test_columns_are_numbers_and_what_is_not_known_is_nan(tmp_path: Path) -> None:
    energies, gaps = ["-1.5", "", "2e-3", "nan", " "], ["0", "1", "2", "3", "4"]
    path = table(tmp_path / "x.csv", ("energy", energies), ("spacegroup.number", gaps))
    found = read_columns(path, ["spacegroup.number", "energy"])
    assert list(found) == ["spacegroup.number", "energy"]
    assert found["spacegroup.number"].tolist() == [0, 1, 2, 3, 4]
    assert found["energy"].dtype == torch.float32
    assert found["energy"][[0, 2]].tolist() == pytest.approx([-1.5, 2e-3])
    assert found["energy"].isnan().tolist() == [False, True, False, True, True]
    short = tmp_path / "short.csv"
    short.write_text("cif,energy\nx,1\ny\n")
    assert read_columns(short, ["energy"])["energy"].isnan().tolist() == [False, True]


@pytest.mark.parametrize("text", ["high", "1,5", "inf", "-1e39", "1.5 eV"])
def test_text_in_a_column_is_an_error_with_its_line(tmp_path: Path, text: str) -> None:
    path = table(tmp_path / "x.csv", ("energy", ["1", "2"]), ("gap", ["0", text]))
    with pytest.raises(
        KldmError, match=rf"x.csv, row in line 5: gap is '{re.escape(text)}', which is no finite number"
    ):
        read_columns(path, ["gap"])


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", ("formation_energy", ["1"]), ("gap", ["0"]), ("gap", ["1"]))
    with pytest.raises(KldmError, match=r"there is no column 'formaton_energy'; did you mean 'formation_energy'\?"):
        read_columns(path, ["formaton_energy"])
    with pytest.raises(KldmError, match="there is no column 'xyz'; it has formation_energy, cif, gap, gap"):
        read_columns(path, ["xyz"])
    with pytest.raises(KldmError, match="2 columns are called 'gap'"):
        read_columns(path, ["gap"])
