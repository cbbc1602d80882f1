"""Files, folders and archives of CIFs and POSCARs, and CSVs: everything in them is read, or fails by name."""

import csv
import gzip
import io
import json
import os
import stat
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from ase.io import write
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.vasp.inputs import Poscar

from kldm.data import read_csv
from kldm.errors import KldmError
from kldm.metrics.validity import structural_validity
from kldm.reading import read_file, read_reference, read_samples
from kldm.runtime import opening
from tests.salts import cif, edges, in_zip, salt

JOURNAL = "data_global\n_journal_year 2020\n"
SEVERAL = JOURNAL + cif(salt(3)) + JOURNAL + cif(salt(4, ("Cs", "Cl"))) + "data_broken\n_atom_site_label Na\n"


def in_tar(path: Path, files: Mapping[str, bytes], members: Sequence[tarfile.TarInfo] = ()) -> Path:
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in members:
            archive.addfile(member)
    return path


def in_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def everywhere(tmp_path: Path, files: Mapping[str, bytes]) -> list[Path]:
    """The files in a folder and in every kind of archive."""
    tars = [in_tar(tmp_path / name, files) for name in ("x.tar", "x.tar.gz", "x.tgz")]
    return [in_folder(tmp_path / "x", files), in_zip(tmp_path / "x.zip", files), *tars]


def test_several_blocks_are_read_everywhere(tmp_path: Path) -> None:
    (tmp_path / "all.cif").write_text(SEVERAL)
    found = read_file(tmp_path / "all.cif")
    assert (edges(found.candidates), found.names) == ([3, 4, None], ("NaCl", "CsCl", "broken"))
    assert not any("one of many" in note for note in found.notes)
    for path in everywhere(tmp_path, {"a.cif": SEVERAL.encode(), "b.cif": cif(salt(5)).encode(), "c.cif": b"\n"}):
        found = read_file(path)
        assert edges(found.candidates) == [3, 4, None, 5, None]
        assert found.names == ("a, NaCl", "a, CsCl", "a, broken", "b", "c")
        assert [c.reason for c in found.candidates if c.structure is None] == [
            "there are no fractional coordinates (_atom_site_fract_x, _y and _z)",
            "it is empty",
        ]
        (note,) = [note for note in found.notes if "one of many" in note]
        assert "2 of 5 structures: their file, one of many, holds several structures" in note


def test_numbered_names_give_targets_in_tars_too(tmp_path: Path) -> None:
    files = {f"deep/0000{target}_00_NaCl.cif": cif(salt(3 + target)).encode() for target in (2, 0)}
    found = read_file(in_tar(tmp_path / "x.tar.gz", files))
    assert [(c.target, c.candidate) for c in found.candidates] == [(0, 0), (2, 0)]
    assert edges(found.candidates) == [3, 5]


def test_compressed_and_foreign_encodings(tmp_path: Path) -> None:
    texts = {"a.cif.gz": gzip.compress(cif(salt(3)).encode()), "b.cif": cif(salt(4)).encode("utf-16")}
    texts |= {"c.cif": cif(salt(5)).replace("data_", "_x 'Müller'\ndata_").encode("latin-1"), "d.cif.gz": b"no gzip"}
    for path in everywhere(tmp_path, texts):
        found = read_file(path)
        assert edges(found.candidates) == [3, 4, 5, None]
        assert found.candidates[3].reason.startswith("it is no gzip file")
        assert found.names == ("a", "b", "c", "d")


POSCAR = "salt\n1.0\n3.0 0 0\n0 3.0 0\n0 0 3.0\nNa Cl\n1 1\nDirect\n0 0 0\n0.5 0.5 0.5\n"


def test_poscars_one_after_the_other(tmp_path: Path) -> None:
    velocities = "\n" + "  0.1E+00 0.2 -0.3\n" * 2 + "\n"
    second = Poscar(salt(4), selective_dynamics=[[True, True, False]] * 2).get_str()
    text = POSCAR + velocities + second + "\n\n" + POSCAR.replace("Na Cl", "Qq Cl") + POSCAR
    (tmp_path / "POSCAR").write_text(text)
    found = read_file(tmp_path / "POSCAR")
    assert edges(found.candidates) == [3, 4, None, 3]
    for path in everywhere(tmp_path, {"POSCAR_2": text.encode(), "1.vasp": POSCAR.encode()}):
        assert edges(read_samples(path)) == [3, 3, 4, None, 3]
    (tmp_path / "x" / "a.cif").write_text(cif(salt()))
    with pytest.raises(KldmError, match="it holds 1 CIF files and 2 POSCAR files; put them into two folders"):
        read_samples(tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (POSCAR.replace("Na Cl\n", ""), "Elements in POSCAR cannot be determined"),
        (POSCAR.replace("1 1\n", "2\n"), "its symbols and numbers of atoms do not agree"),
        (POSCAR.replace("Na Cl\n1 1", "Na\n1"), "it lists more sites than its numbers of atoms say"),
        (POSCAR[:-12], "it is no POSCAR, or is cut short"),
        (POSCAR.replace("0.5", "nan"), "the coordinates hold a number that is not finite"),
        (POSCAR.replace("Na Cl", "Xx Cl"), "'Xx' is no element"),
        (POSCAR.replace("3.0", "0.0"), "the cell"),
    ],
)
def test_poscars_that_guess(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "x.vasp").write_text(POSCAR.replace("3.0", "4.0") + text)
    found = read_samples(tmp_path / "x.vasp")
    assert edges(found) == [4, None]
    assert reason in found[1].reason


def overlapping() -> list[Structure]:
    sites = [
        (["Mg", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        (["Mg", "Mg", "O", "O"], [[0, 0, 0], [1e-5, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0]]),
        (["Mg", "O"], [[0, 0, 0], [0, 0, 2e-5]]),
        (["Na", "Cl", "Cl", "Na"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0, 0]]),
    ]
    return [Structure(Lattice.cubic(4.2), elements, np.array(positions)) for elements, positions in sites]


def table(path: Path, texts: Sequence[str], column: str = "cif", delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["id", column], *([f"Å{number}", text] for number, text in enumerate(texts))])
    return path


def test_atoms_on_top_of_each_other_are_judged_alike_in_all_formats(tmp_path: Path) -> None:
    given = overlapping()
    (tmp_path / "x.json").write_text(json.dumps([structure.as_dict() for structure in given]))
    frames = [AseAtomsAdaptor.get_atoms(structure) for structure in given]
    write(tmp_path / "x.extxyz", frames, format="extxyz")
    (tmp_path / "ase").mkdir()
    for number, atoms in enumerate(frames):
        write(tmp_path / "ase" / f"{number}.cif", atoms, format="cif")
    in_zip(tmp_path / "x.zip", {f"{number}.cif": cif(structure).encode() for number, structure in enumerate(given)})
    table(tmp_path / "x.csv", [cif(structure) for structure in given])
    judged = []
    for name in ("x.json", "x.extxyz", "x.zip", "x.csv", "ase"):
        found = [candidate.structure for candidate in read_samples(tmp_path / name)]
        judged.append([(s.composition, structural_validity(s)) for s in found if s is not None])
    assert [reason for _, reason in judged[0]] == ["", *["atoms closer than 0.5 A"] * 3]
    assert all(each == judged[0] for each in judged)


def test_charges_and_deuterium_are_no_part_of_the_crystal(tmp_path: Path) -> None:
    charged = salt().add_oxidation_state_by_guess()
    heavy = cif(salt(4, ("Li", "H"))).replace("H  H1", "D  D1")
    found = read_samples(in_zip(tmp_path / "x.zip", {"a.cif": cif(charged).encode(), "b.cif": heavy.encode()}))
    assert [candidate.structure for candidate in found] == [salt(), salt(4, ("Li", "H"))]


def test_tables_of_dicts(tmp_path: Path) -> None:
    dicts = [salt(a).as_dict() for a in (3, 4)]
    for column in ("cif", "structure", "CIF", " Cif"):
        for texts in (list(map(str, dicts)), list(map(json.dumps, dicts))):
            path = table(tmp_path / "x.csv", [*texts, "", "<html>"], column)
            found = read_samples(path)
            assert edges(found) == [3, 4, None, None]
            assert [c.reason for c in found[2:]] == [
                "the entry is empty",
                "it is no CIF: there is no line that begins with data_",
            ]
    assert read_csv(table(tmp_path / "y.csv", list(map(str, dicts)))).store.sizes == (2, 2)


@pytest.mark.parametrize("read", [read_samples, read_csv])
def test_tables_of_another_layout_are_refused_with_what_they_are(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "x.csv"
    for delimiter, name in {";": "semicolons", "\t": "tabs"}.items():
        with pytest.raises(KldmError, match=f"its columns are separated by {name}; save it with commas"):
            read(table(path, [cif(salt())], delimiter=delimiter))
    with pytest.raises(KldmError, match="it is not UTF-8; save it as UTF-8"):
        read(table(path, [cif(salt())], encoding="latin-1"))
    with pytest.raises(KldmError, match=r"there is no column 'cif' \(found: id, formula\); write a CIF"):
        read(table(path, ["NaCl"], "formula"))
    with pytest.raises(KldmError, match="there is no line that begins with data_"):
        read(table(path, [str(salt()), str(salt(5))]))


def test_references_with_atoms_on_top_of_each_other_are_noted(tmp_path: Path) -> None:
    table(tmp_path / "x.csv", [cif(structure) for structure in overlapping()])
    (note,) = read_reference(tmp_path / "x.csv").notes()
    assert "3 of 4 structures of the reference" in note
    assert "have atoms closer than 0.5 angstrom (the first is row 1)" in note


PIPE = "is a named pipe and no regular file"


def test_pipes_devices_and_links_are_refused_in_a_sentence(tmp_path: Path) -> None:
    for name in ("pipe.cif", "pipe.jsonl", "pipe.zip", "pipe.pt"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(KldmError, match=f"{name}: it {PIPE}; write it to a file first"):
            read_samples(tmp_path / name)
    with pytest.raises(KldmError, match="/dev/zero: it is a device and no regular file"):
        read_samples("/dev/zero")
    folder = in_folder(tmp_path / "x", {"a.cif": cif(salt(3)).encode()})
    os.mkfifo(folder / "b.cif")
    (folder / "c.cif").symlink_to("/dev/zero")
    (folder / "d.cif").symlink_to(tmp_path / "nowhere")
    found = read_samples(folder)
    assert edges(found) == [3, None, None, None]
    assert [c.reason for c in found[1:]] == [
        f"it {PIPE}",
        "it is a device and no regular file",
        "it cannot be read: No such file or directory",
    ]
    odd = [tarfile.TarInfo(name) for name in ("b.cif", "c.cif", "d.cif")]
    odd[0].type, odd[1].type, odd[2].type = tarfile.FIFOTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE
    odd[1].linkname = "/etc/passwd"
    in_tar(tmp_path / "x.tar", {"a.cif": cif(salt(3)).encode()}, odd)
    link = zipfile.ZipInfo("b.cif")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.cif", cif(salt(3)))
        archive.writestr(link, "/etc/passwd")
    for name in ("x.tar", "x.zip"):
        found = read_samples(tmp_path / name)
        assert edges(found)[0] == 3
        assert {c.reason for c in found[1:]} == {"it is a link, a pipe or a device and no regular file"}


def test_archives_that_grow_beyond_the_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "LARGEST_UNPACKED", 2**20)
    zeros = bytes(2**19)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.cif", zeros)
    in_tar(tmp_path / "x.tar.gz", {f"{number}.txt": zeros for number in range(3)})
    for name in ("x.cif.gz", "x.csv.gz", "x.json.gz", "x.jsonl.gz", "x.extxyz.gz"):
        (tmp_path / name).write_bytes(gzip.compress(zeros * 3))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(
            KldmError, match=f"{path.name}: it unpacks to more than 1 MiB; unpack it, or split it, first"
        ):
            read_samples(path)
    with pytest.raises(KldmError, match="it unpacks to more than 1 MiB"):
        read_csv(tmp_path / "x.csv.gz")


def test_what_grows_a_thousandfold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "LEAST_UNPACKED", 2**20)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b" " * 2**21))
    with pytest.raises(KldmError, match="it unpacks to more than 1 MiB"):
        read_samples(tmp_path / "x.jsonl.gz")


def test_an_endless_entry_fails_alone(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.cif", bytes(2**24 + 1))
        archive.writestr("1.cif", cif(salt(3)))
    found = read_samples(tmp_path / "x.zip")
    assert edges(found) == [None, 3]
    assert found[0].reason == "it is longer than 16 MiB"


def test_control_characters_are_not_passed_on(tmp_path: Path) -> None:
    bad = cif(salt()).replace("Na  Na0", "\x1b[31mNa  Na0")
    found = read_file(in_zip(tmp_path / "x.zip", {"a\x1b[2Jb\r.cif": bad.encode(), "c.cif": cif(salt()).encode()}))
    for text in (found.names[0], found.places[0], found.candidates[0].reason):
        assert text.isprintable()
    assert found.candidates[0].structure is None


def test_damaged_tars_are_one_sentence(tmp_path: Path) -> None:
    whole = in_tar(tmp_path / "x.tar.gz", {f"{number}.cif": os.urandom(5000) for number in range(20)}).read_bytes()
    for content in (whole[:-2000], b"this is no tar", gzip.compress(b"neither is this" * 100), b""):
        (tmp_path / "x.tar.gz").write_bytes(content)
        with pytest.raises(
            KldmError, match=r"not a tar file, or a damaged one|cut short or damaged|Not a gzipped file"
        ):
            read_samples(tmp_path / "x.tar.gz")


def test_names_are_those_of_folders_where_files_are_called_alike(tmp_path: Path) -> None:
    files = {f"{name}/out.cif": cif(salt()).encode() for name in ("mp-2", "mp-1")}
    for name, content in files.items():
        (tmp_path / "x" / name).parent.mkdir(parents=True)
        (tmp_path / "x" / name).write_bytes(content)
    for path in (tmp_path / "x", in_zip(tmp_path / "x.zip", files)):
        assert read_file(path).names == ("mp-1/out", "mp-2/out")


def test_poscars_in_one_file_are_called_by_their_first_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.vasp"
    path.write_text("".join(Poscar(salt(), comment=name).get_str() for name in ("mp-2", "mp-1")))
    assert read_file(path).names == ("mp-2", "mp-1")
