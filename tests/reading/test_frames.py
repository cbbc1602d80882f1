"""Extended xyz: frames of other programs, and frames that fail alone."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kldm.errors import KldmError
from kldm.reading import read_file
from tests.reading.test_samples import outcome

SITES = (("Na", 0.0, 0.0, 0.0), ("Cl", 2.82, 2.82, 2.82))
LATTICE = 'Lattice="3.99 3.99 0 0 3.99 3.99 3.99 0 3.99"'
COLUMNS = "Properties=species:S:1:pos:R:3"
NO_CELL = "there is no cell (its second line has no Lattice)"


def frame(head: str = f'{LATTICE} {COLUMNS} pbc="T T T"', more: str = "", **names: str) -> str:
    atoms = "".join(f"{names.get(name, name)} {x:.6f} {y:.6f} {z:.6f}{more}\n" for name, x, y, z in SITES)
    return f"2\n{head}\n{atoms}"


def reasons(path: Path, text: str) -> list[str]:
    """The formula or the reason of each frame."""
    path.write_bytes(text.encode())
    found = read_file(path).candidates
    return [c.reason if c.structure is None else c.structure.formula for c in found]


SALT = "Na1 Cl1"


@pytest.mark.parametrize(
    "text",
    [
        frame(),
        frame(f"{LATTICE} {COLUMNS}"),
        frame(LATTICE),
        frame(f"{LATTICE} Properties=Z:I:1:pos:R:3", Na="11", Cl="17"),
        frame(Na="11", Cl="17"),
        frame(Na="na", Cl="CL"),
        frame(Na="Na+", Cl="Cl-"),
        frame(f'{LATTICE} {COLUMNS}:forces:R:3 stress="1 0 0 0 1 0 0 0 1" energy=None free_energy=nan', " 0 0 0"),
        frame(f'{LATTICE} {COLUMNS} stress="0.01 0.01 0.01 0 0 0" virial="1" _JSON key-with-dash=1 note="a b=c"'),
        frame(f"{LATTICE} {COLUMNS}:mtt::charge:R:1", " 0.1"),
        frame(f"{LATTICE.replace('3.99', '0.399D+01')} {COLUMNS}"),
        frame().replace("2.820000", "0.282d+01"),
        frame().replace("\n", "\r\n"),
        frame(LATTICE.replace('"3', '"[[3').replace('9"', '9]]"') + f" {COLUMNS}"),
        frame(f"{LATTICE} {COLUMNS} target=dft"),
    ],
)
def test_what_is_not_needed_is_in_any_form(tmp_path: Path, text: str) -> None:
    assert reasons(tmp_path / "x.extxyz", text) == [SALT]


def test_every_frame_is_read_or_fails_alone(tmp_path: Path) -> None:
    short, long = frame().replace("2\n", "3\n", 1), frame().replace("2\n", "1\n", 1)
    texts = ["\n\n", frame(), "\n \n\n", frame().replace("2.820000", "oops"), frame(), short, frame(), long, "\n"]
    texts += [frame().replace("2\n", "two\n", 1), f"0\n{LATTICE}\n", "1\n\nNa 0 0 0\n", frame(Na="Xx"), frame()[:-20]]
    assert reasons(tmp_path / "x.extxyz", "".join(texts)) == [
        SALT,
        "'oops' is no number",
        SALT,
        "it has fewer lines than atoms",
        SALT,
        "it has more lines than atoms",
        "'two' is no number of atoms",
        "there are no atoms",
        NO_CELL,
        "'Xx' is no element",
        "the line of an atom is cut short",
    ]
    notes = read_file(tmp_path / "x.extxyz").notes
    assert any("1 of 11 structures: they cannot be read: 'oops' is no number (the first is" in note for note in notes)
    assert any("x.extxyz, frame 1)" in note for note in notes)
    assert reasons(tmp_path / "x.extxyz", (frame() + "\n") * 100) == [SALT] * 100


def test_a_missing_number_of_atoms_costs_its_own_frame_alone(tmp_path: Path) -> None:
    head = 'Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 target={}\n'
    atoms = "Na 0 0 0\nCl 2 2 2\n"
    text = "".join(("" if n == 1 else "2\n") + head.format(n) + atoms for n in range(3))
    (tmp_path / "x.extxyz").write_text(text)
    found = read_file(tmp_path / "x.extxyz").candidates
    assert [(c.target, c.structure is not None) for c in found] == [(0, True), (1, False), (2, True)]
    assert found[1].reason == "the line with its number of atoms is missing"


def test_heavy_hydrogen_is_hydrogen(tmp_path: Path) -> None:
    assert reasons(tmp_path / "x.xyz", frame(Na="Li", Cl="D")) == ["Li1 H1"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (frame(COLUMNS), NO_CELL),
        (frame(f"{LATTICE.lower()} {COLUMNS}"), NO_CELL),
        (frame(f"{LATTICE.replace('Lattice', 'cell')} {COLUMNS}"), NO_CELL),
        (frame(""), NO_CELL),
        (
            frame(f"{LATTICE} Properties=species:S:1:frac_pos:R:3"),
            r"no columns of species and pos \(found: species, fr",
        ),
        (frame(f'Lattice="1 2 3" {COLUMNS}'), "its Lattice has not 9 numbers"),
        (frame(Na="D2O"), "'D2O' is no element"),
        (
            frame("") + "Na 0 0 0\n" + frame(""),
            "x.extxyz:5: there are more lines than atoms, so that the frames after them",
        ),
        ("two atoms\n", "x.extxyz:1: not an extended xyz file .'two atoms' is no number of atoms"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(KldmError, match=told.replace(NO_CELL, "there is no cell")):
        reasons(tmp_path / "x.extxyz", text)


def test_periodicity_targets_and_names(tmp_path: Path) -> None:
    slab = f'{LATTICE} {COLUMNS} pbc="T T F" material_id=mp-7 target=1.0 selected=T candidate=3'
    (tmp_path / "x.extxyz").write_text(frame(slab))
    found = read_file(tmp_path / "x.extxyz")
    (only,) = found.candidates
    assert (only.target, only.candidate, only.selected, found.names) == (1, 3, True, ("mp-7",))
    assert "not periodic along all axes (pbc T T F)" in found.notes[0]
    for odd in ("dft", "1.53", "-2", "None"):
        (tmp_path / "x.extxyz").write_text(frame(f"{LATTICE} target={odd}"))
        assert "its 'target' is no row of a reference" in read_file(tmp_path / "x.extxyz").notes[0]
    for form in ('"0 0 0"', '"F F F"', "[F,F,F]", '"False FALSE false"'):
        (tmp_path / "x.extxyz").write_text(frame(f"{LATTICE} {COLUMNS} pbc={form}"))
        assert "not periodic along all axes (pbc F F F)" in read_file(tmp_path / "x.extxyz").notes[0]
    (tmp_path / "x.extxyz").write_text(frame(f"{LATTICE} Properties=species:S:1:pos:R:2"))
    with pytest.raises(KldmError, match="its positions are not three numbers"):
        read_file(tmp_path / "x.extxyz")


@pytest.mark.parametrize("text", ["a", "a=", "a={", 'a="', "a=[", "a= ", "Lattice=", "x:R:1:", "\t"])
def test_long_lines_take_no_time(tmp_path: Path, text: str) -> None:
    assert reasons(tmp_path / "x.extxyz", frame() + frame(text * 100_000))[0] == SALT


PIECES = [
    "",
    "1",
    "2",
    "0",
    "x",
    LATTICE,
    'Lattice="nan inf"',
    COLUMNS,
    "pbc=[T",
    "Na 0 0 0",
    "11 1 1",
    "Na+ 1e400 1_0 0",
    "=",
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=12))
def test_garbage_never_costs_the_first_frame(tmp_path: Path, pieces: list[str]) -> None:
    path = tmp_path / "x.extxyz"
    path.write_text(frame() + frame() + "\n".join(pieces), errors="replace")
    found = outcome(path)
    if isinstance(found, str):
        assert found.startswith(str(path))
        assert "\n" not in found
    else:
        assert found[0].structure is not None
