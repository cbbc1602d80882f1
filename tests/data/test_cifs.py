"""What a CIF says is read; what it contradicts or leaves open is refused, with the reason."""

import json
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from pymatgen.io.cif import CifWriter
from pymatgen.symmetry.groups import SpaceGroup

from kldm.data.cifs import LONGEST_DICT, blocks, read_text
from kldm.data.parsing import parse_cif
from kldm.data.structures import ImpossibleError, StructureError
from kldm.data.symmetry import operations
from kldm.runtime.numbers import Float

CASES = Path(__file__).parent.parent / "cases"
NACL = (CASES / "05" / "NaCl.cif").read_text()
CELL = "".join(f"_cell_length_{axis} 5.64\n" for axis in "abc") + "".join(
    f"_cell_angle_{angle} 90\n" for angle in ("alpha", "beta", "gamma")
)
ATOMS = NACL[NACL.rindex("loop_") :]
IN_FULL = "loop_\n_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n" + "".join(
    f"{element}{number} {x + shift} {y} {z}\n"
    for element, shift in (("Na", 0.0), ("Cl", 0.5))
    for number, (x, y, z) in enumerate(
        [
            (shift, shift, shift),
            (shift, 0.5 - shift, 0.5 - shift),
            (0.5 - shift, shift, 0.5 - shift),
            (0.5 - shift, 0.5 - shift, shift),
        ]
    )
)


def without_operations(name: str, atoms: str = ATOMS, cell: str = CELL) -> str:
    return f"data_x\n{cell}{name}\n{atoms}"


def formula(text: str) -> str:
    """The composition of the cell, or the reason why there is none."""
    try:
        return read_text(text).formula
    except StructureError as error:
        return str(error)


def loop(*rows: str) -> str:
    """A loop of atoms with labels, symbols, coordinates and occupancies."""
    return ATOMS[: ATOMS.index("Na1")] + "\n".join(rows) + "\n"


def labels_only(text: str, label: str = "Na1") -> str:
    return text.replace("_atom_site_type_symbol\n", "").replace("Na1 Na ", f"{label} ").replace("Cl1 Cl ", "Cl1 ")


def named(lines: str, text: str = NACL) -> str:
    """The text with further items after its header."""
    return text.replace("_cell", f"{lines}\n_cell", 1)


def silicon(group: str, position: str) -> str:
    return without_operations(group, loop(f"Si1 Si {position} 1"), CELL.replace("5.64", "5.43"))


MONOCLINIC, HEXAGONAL = CELL.replace("beta 90", "beta 99"), CELL.replace("gamma 90", "gamma 120")
RHOMBOHEDRAL = re.sub(r"(length_\w) 5.64", r"\1 4.746", CELL).replace(" 90", " 57.23")

READ: dict[str, tuple[str, str]] = {
    "as it is": (NACL, "Na4 Cl4"),
    "Windows lines": (NACL.replace("\n", "\r\n"), "Na4 Cl4"),
    "old Mac lines": (NACL.replace("\n", "\r"), "Na4 Cl4"),
    "only a name": (without_operations("_symmetry_space_group_name_H-M 'F m -3 m'"), "Na4 Cl4"),
    "only an old name": (without_operations("_symmetry_space_group_name_H-M 'F m 3 m'"), "Na4 Cl4"),
    "only a number": (without_operations("_space_group_IT_number 225"), "Na4 Cl4"),
    "only a Hall symbol": (without_operations("_space_group_name_Hall '-F 4 2 3'"), "Na4 Cl4"),
    "no symmetry": (f"data_x\n{CELL}{IN_FULL}", "Na4 Cl4"),
    "one operation, not in a loop": (f"data_x\n{CELL}_symmetry_equiv_pos_as_xyz x,y,z\n{IN_FULL}", "Na4 Cl4"),
    "a text field": (NACL.replace("data_NaCl", "data_NaCl\n_comment\n;\ndata_ of\n_atom_site_ x\n;"), "Na4 Cl4"),
    "upper case": (re.sub("data_|loop_|_cell_length", lambda match: match[0].upper(), NACL), "Na4 Cl4"),
    "uncertainties": (NACL.replace("5.64", "5.6400(12)").replace("0.5 0.5 0.5", "0.5000(3) 0.5000(3) 0.5"), "Na4 Cl4"),
    "labels only": (labels_only(NACL), "Na4 Cl4"),
    "upper symbols": (NACL.replace("Na1 Na", "NA1 NA").replace("Cl1 Cl", "CL1 CL"), "Na4 Cl4"),
    "charges": (NACL.replace("Na1 Na", "Na1 Na1+").replace("Cl1 Cl", "Cl1 Cl-1"), "Na4 Cl4"),
    "an occupancy left to its default": (NACL.replace("0.5 0.5 0.5 1", "0.5 0.5 0.5 ."), "Na4 Cl4"),
    "no letters of ASCII": (NACL.replace("data_NaCl\n", "data_NaCl\n_publ_author_name 'Müller 结晶'\n"), "Na4 Cl4"),
    "tabs": (NACL.replace("5.64", "\t5.64").replace(" 0.5", "\t0.5"), "Na4 Cl4"),
    "dots in names": (NACL.replace("_atom_site_", "_atom_site.").replace("_cell_", "_cell."), "Na4 Cl4"),
    "deuterium": (NACL.replace("Cl1 Cl", "D1 D"), "Na4 H4"),
    "dummy atoms": (
        NACL.replace("occupancy", "calc_flag").replace(" 1\n", " d\n") + "X1 Cl .25 .25 .25 dum\n",
        "Na4 Cl4",
    ),
    "origin 1": (silicon("_space_group_name_H-M_alt 'F d -3 m :1'", "0 0 0"), "Si8"),
    "origin 2": (silicon("_space_group_name_H-M_alt 'F d -3 m Z'", ".125 .125 .125"), "Si8"),
    "rhombohedral axes": (
        without_operations("_symmetry_space_group_name_H-M 'R -3 m :R'", loop("Bi1 Bi .234 .234 .234 1"), RHOMBOHEDRAL),
        "Bi2",
    ),
    "monoclinic": (
        without_operations("_symmetry_space_group_name_H-M 'P 21/n'", loop("Na1 Na .1 .25 .3 1"), MONOCLINIC),
        "Na4",
    ),
    "two elements on one site": (NACL.replace("Na1 Na 0 0 0 1", "Na1 Na 0 0 0 1\nK1 K 0 0 0 1"), "K4 Na4 Cl4"),
    "an atom listed twice": (f"data_x\n{CELL}{IN_FULL}Na9 0 0 0\n", "Na5 Cl4"),
    "an atom listed nearly twice": (f"data_x\n{CELL}{IN_FULL}K9 0.00001 0 0\n", "K1 Na4 Cl4"),
    "the right formula": (named("_chemical_formula_sum 'Cl Na'\n_cell_formula_units_Z 4"), "Na4 Cl4"),
    "orders of site symmetries": (
        NACL.replace("occupancy", "symmetry_multiplicity").replace(" 1\n", " 48\n"),
        "Na4 Cl4",
    ),
    "multiplicities": (NACL.replace("occupancy", "site_symmetry_multiplicity").replace(" 1\n", " 4\n"), "Na4 Cl4"),
    "the formula of the cell": (named("_chemical_formula_sum 'Na4 Cl4'\n_cell_formula_units_Z 4"), "Na4 Cl4"),
    "P1 in full, under the name of its group": (
        f"data_x\n{CELL}_symmetry_equiv_pos_as_xyz x,y,z\n_symmetry_Int_Tables_number 225\n"
        f"_chemical_formula_sum 'Na Cl'\n_cell_formula_units_Z 4\n{IN_FULL}",
        "Na4 Cl4",
    ),
    "a byte order mark in between": ("\ufeff# a comment\n\ufeff" + NACL, "Na4 Cl4"),
}  # fmt: skip

REFUSED: dict[str, tuple[str, str]] = {
    "an unknown occupancy": (NACL.replace("0 0 0 1", "0 0 0 ?"), "_atom_site_occupancy is '?'"),
    "a partial occupancy": (NACL.replace("0 0 0 1", "0 0 0 0.97"), "it is disordered"),
    "an occupancy above 1": (NACL.replace("0 0 0 1", "0 0 0 1.02"), "an occupancy is not between 0 and 1"),
    "no cell": (f"data_x\n{IN_FULL}", "there is no _cell_length_a"),
    "an unknown cell": (NACL.replace("_cell_length_b 5.64", "_cell_length_b ?"), "there is no _cell_length_b"),
    "a flat cell": (f"data_x\n{CELL}{IN_FULL}".replace("gamma 90", "gamma 0"), "a cell angle lies outside 0 to 180"),
    "an edge of zero": (NACL.replace("_b 5.64", "_b 0.0"), "cell length not positive"),
    "impossible angles": (
        f"data_x\n{CELL}{IN_FULL}".replace("alpha 90", "alpha 20").replace("gamma 90", "gamma 150"),
        "the cell is flat or impossible",
    ),
    "an unknown coordinate": (NACL.replace("0.5 0.5 0.5", "? 0.5 0.5"), "a coordinate is '?'"),
    "a coordinate that does not apply": (NACL.replace("0.5 0.5 0.5", ". 0.5 0.5"), "a coordinate is '.'"),
    "another minus sign": (NACL.replace("0.5 0.5 0.5", "\u22120.5 0.5 0.5"), "a coordinate is '?0.5'"),
    "not a number": (NACL.replace("0.5 0.5 0.5", "nan 0.5 0.5"), "the coordinates hold a number that is not finite"),
    "a coordinate far away": (NACL.replace("0.5 0.5 0.5", "1e12 0.5 0.5"), "a coordinate lies more than"),
    "no atoms": (NACL[: NACL.rindex("loop_")], "it lists no atoms"),
    "dummies alone": (
        without_operations("", loop("X1 Cl 0 0 0 dum").replace("occupancy", "calc_flag")),
        "it lists no atoms",
    ),
    "no header": (NACL.replace("data_NaCl", "# exported"), "there is no line that begins with data_"),
    "atoms before the header": (IN_FULL + NACL, "it lists atoms before its first line"),
    "a text field without an end": (NACL.replace("data_NaCl", "data_NaCl\n_comment\n;\n"), "a text field"),
    "no element": (NACL.replace("Na1 Na", "X1 X"), "'X' is no element"),
    "a vacancy": (NACL.replace("Na1 Na", "Va1 Va"), "'Va' is no element"),
    "water": (NACL + "Wat1 Wat .25 .25 .25 1\n", "'Wat' is no element"),
    "two elements in one": (NACL.replace("Na1 Na ", "M1 '0.5Na + 0.5K' "), "is no element"),
    "a label that means two": (labels_only(NACL, "CO1"), "may mean C or Co"),
    "another formula": (named("_chemical_formula_sum 'Na1 Cl3'"), "its atoms contradict its chemical formula"),
    "a missing element": (named("_chemical_formula_sum 'Na Cl H'"), "its atoms contradict its chemical formula"),
    "less than the formula": (named("_chemical_formula_sum 'Na8 Cl8'"), "its atoms contradict its chemical formula"),
    "another number of units": (
        without_operations("_chemical_formula_sum 'Na Cl'\n_cell_formula_units_Z 4"),
        "its atoms contradict the number of its formula units",
    ),
    "operations that are not listed": (
        f"data_x\n{CELL}_symmetry_space_group_name_H-M 'F m -3 m'\n_symmetry_equiv_pos_as_xyz x,y,z\n{ATOMS}",
        "it names a space group whose symmetry operations it does not list in full",
    ),
    "centrings that are not listed": (re.sub(r"'[^']*1/2[^']*'\n", "", NACL), "it does not list in full"),
    "multiplicities without operations": (
        f"data_x\n{CELL}{ATOMS}".replace("occupancy", "symmetry_multiplicity").replace(" 1\n", " 4\n"),
        "it gives atoms a multiplicity",
    ),
    "another multiplicity": (NACL.replace("occupancy", "symmetry_multiplicity"), "contradicts its symmetry operations"),
    "one of two origins": (silicon("_symmetry_Int_Tables_number 227", "0 0 0"), "several settings"),
    "one of two origins, by name": (silicon("_space_group_name_H-M_alt 'F d -3 m'", "0 0 0"), "several settings"),
    "an unknown group": (
        without_operations("_space_group_name_H-M_alt 'Q 7'\n_symmetry_Int_Tables_number 225"),
        "the space group 'Q 7' is not known",
    ),
    "a group of another cell": (without_operations("_space_group_IT_number 194"), "does not fit its cell"),
    "operations of another cell": (NACL.replace("gamma 90", "gamma 120"), "do not fit its cell"),
    "two groups": (NACL.replace(" 225", " 221"), "contradict each other"),
    "an operation with a product": (NACL.replace("'x, y, z'", "'1*x, y, z'"), "'1*x, y, z' cannot be read"),
    "a damaged operation": (NACL.replace("'x, y, z'", "'x, y'"), "the symmetry operation 'x, y' cannot be read"),
    "one digit of a third": (
        without_operations("_space_group_IT_number 191", loop("Al1 Al 0 0 0 1", "B1 B .3 .7 .5 1"), HEXAGONAL),
        "its coordinates have few digits",
    ),
    "thirds of three digits beside others of five": (
        without_operations("_space_group_IT_number 191", loop("B1 B .333 .667 .5 1", "Al1 Al 0 0 .12345 1"), HEXAGONAL),
        "copies of an atom by symmetry lie on top of each other",
    ),
    "all atoms and all operations": (NACL + "Na2 Na 0 .5 .5 1\n", "it lists an atom and a copy of it by symmetry"),
    "a value too few": (NACL.replace("0.5 0.5 0.5 1", "0.5 0.5 1"), "the values of a loop do not fill its columns"),
    "a value too many": (NACL.replace("_b 5.64", "_b 5.64 5.65"), "Possible issue in CIF file at line: 5.65"),
    "two cells": (named("_cell_length_a 5.5"), "it lists a cell or atoms twice"),
    "implicit hydrogens": (NACL.replace("occupancy", "attached_hydrogens"), "it has hydrogens without positions"),
    "alternatives": (NACL.replace("occupancy", "disorder_group").replace("0.5 1", "0.5 2"), "it is disordered"),
    "modulated": (NACL.replace("data_NaCl", "data_NaCl\n_cell_modulation_dimension 1"), "it is a modulated structure"),
    "composite": (NACL.replace("data_NaCl", "data_NaCl\n_cell_subsystems_number 2"), "it is a modulated structure"),
    "superspace": (NACL.replace("data_NaCl", "data_NaCl\n_space_group_ssg_name 'P1'"), "it is a modulated structure"),
    "nothing": ("", "it is empty"),
    "a web page": ("<html><body>404 Not Found</body></html>", "it is no CIF"),
    "two structures": (NACL + NACL, "it holds 2 structures where one is expected"),
    "an endless line": (NACL + "#" * 5000, "a line is longer than 4096 characters"),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_what_is_read(case: str) -> None:
    text, expected = READ[case]
    assert formula(text) == expected


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    text, reason = REFUSED[case]
    assert reason in formula(text)
    assert parse_cif(text) == formula(text)  # a training row fails with the same reason


CELLS = {"Al2O3": 30, "AlB2": 3, "La2O3": 5, "Mg": 2, "MoS2": 6, "Quartz": 9, "ZnO": 4}


@pytest.mark.parametrize("name", CELLS)
def test_special_positions_of_three_digits(name: str) -> None:
    """Copies that the digits cannot tell apart are one atom, with or without multiplicities."""
    text = (CASES / "01" / f"{name}.cif").read_text()
    structure = read_text(text)
    assert len(structure) == CELLS[name]
    assert structure.distance_matrix[np.triu_indices(len(structure), 1)].min() > 1
    unnumbered = text.replace("_atom_site_symmetry_multiplicity", "_atom_site_number")
    assert read_text(unnumbered) == structure
    assert len(read_text(re.sub(r"loop_\n_symmetry.*?(?=loop_)", "", text, flags=re.DOTALL))) == CELLS[name]


def test_sites_are_those_of_the_writer_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    for number in range(5):
        given = Structure(
            Lattice.from_parameters(4, 5, 6, 80, 95, 100 + number), ["O", "He", "Fe", "Na"], rng.random((4, 3))
        )
        text = str(CifWriter(given))
        assert read_text(text).frac_coords.tolist() == Structure.from_str(text, fmt="cif").frac_coords.tolist()


SYMBOLS = ["P-1", "P2_1/c", "P 1 21/c 1", "C2/c", "Pnma", "P b n m", "Aba2", "I4_1md", "R-3m", "P6_3/mmc", "Ia-3d"]


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_named_groups_have_the_operations_of_pymatgen(symbol: str) -> None:
    lengths = (5, 6, 7) if symbol[0] in "PCA" and "6" not in symbol else (5, 5, 7 if "-3d" not in symbol else 5)
    angles = (90, 97 if "/c" in symbol else 90, 120 if symbol in ("R-3m", "P6_3/mmc") else 90)
    matrix = Lattice.from_parameters(*lengths, *angles).matrix
    found, complete = operations({"_space_group_name_h-m_alt": symbol}, matrix)
    group = SpaceGroup("P2_1/c" if "21/c" in symbol else symbol.replace(" ", ""))
    expected = [(op.rotation_matrix, op.translation_vector % 1) for op in group.symmetry_ops]

    def rounded(pairs: Iterable[tuple[Float, Float]]) -> set[str]:
        return {str([np.rint(rotation).tolist(), np.rint(shift * 24).tolist()]) for rotation, shift in pairs}

    assert complete
    assert rounded(zip(found.rotations, found.translations % 1, strict=True)) == rounded(expected)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_writer_counts_molecules_of_an_element(count: int) -> None:
    given = Structure(Lattice.cubic(4), ["N"] * count, np.arange(count)[:, None] / count * [1, 1, 1])
    assert formula(str(CifWriter(given))) == f"N{count}"


def test_training_rows_round_thirds() -> None:
    text = NACL[: NACL.index("loop_")].replace("225", "1").replace("F m -3 m", "P 1") + loop(
        "Na1 Na 0.3333 0.66666 0.25 1"
    )
    assert read_text(text).frac_coords.tolist() == [[0.3333, 0.66666, 0.25]]
    assert read_text(text, rounded=True).frac_coords.tolist() == [[1 / 3, 2 / 3, 0.25]]


def test_blocks_without_atoms_are_passed_over() -> None:
    journal = "data_global\n_journal_year 2020\n"
    assert [block.name for block in blocks(journal + NACL + journal + NACL.replace("data_NaCl", "data_2"))] == [
        "NaCl",
        "2",
    ]
    with pytest.raises(StructureError, match="it lists no atoms"):
        blocks(journal)


@pytest.mark.parametrize("written", [json.dumps, str, lambda value: json.dumps(json.dumps(value))])
def test_dicts_of_pymatgen(written: Callable[[object], str]) -> None:
    given = Structure(
        Lattice.cubic(4), ["Cs", "Cl"], np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
    ).add_oxidation_state_by_guess()
    assert formula(written(given.as_dict())) == "Cs1 Cl1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{'lattice': array([1])}", "neither JSON nor made of Python's plain values"),
        ("{" + "-" * 100_000 + "1}", "neither JSON nor made of Python's plain values"),
        ('{"a": ' + "[" * 100_000, "neither JSON nor made of Python's plain values"),
        ("{" + " " * LONGEST_DICT + "}", "it is a dict of more than"),
        ('{"a": 1}', "there is no 'lattice'"),
    ],
)  # fmt: skip
def test_other_dicts_are_refused(text: str, reason: str) -> None:
    assert reason in formula(text)


def test_elements_are_known_although_there_is_no_structure() -> None:
    with pytest.raises(StructureError) as caught:
        read_text(f"data_x\n{CELL}{IN_FULL}".replace("_b 5.64", "_b -5.64"))
    assert caught.value.species == (11,) * 4 + (17,) * 4
    assert isinstance(caught.value, ImpossibleError)


def mutated(text: str, rng: random.Random) -> str:
    letters = list(text)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(letters))
        words = ["\n", "'", ";", "loop_\n", "data_x\n", "_cell_length_a", "?", "-", "1e9", "nan", "\x00", "\udc80"]
        letters[place : place + rng.choice((0, 1, 30))] = rng.choice(words)
    return "".join(letters)


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damaged_texts_are_read_or_refused(count: int) -> None:
    rng = random.Random(0)
    for _ in range(count):
        text = mutated(rng.choice([NACL, READ["only a name"][0], READ["no symmetry"][0]]), rng)
        assert formula(text)
