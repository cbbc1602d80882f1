"""Chemical formulas become the atoms of cells."""

import subprocess
import sys
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core.composition import Composition

from kldm.data.formulas import cells, reduced_counts, reduced_formula
from kldm.errors import KldmError


@pytest.mark.parametrize(
    ("formula", "content"),
    [
        ("LiFePO4", {3: 1, 26: 1, 15: 1, 8: 4}),
        ("Na2Cl2", {11: 2, 17: 2}),
        ("Ca(OH)2", {20: 1, 8: 2, 1: 2}),
        ("Cl2Na2", {11: 2, 17: 2}),
        ("HDO", {1: 2, 8: 1}),
        ("Fm", {100: 1}),
        ("O", {8: 1}),
        ("H500", {1: 500}),
        ("D2O", {1: 2, 8: 1}),
        ("CuSO4(H2O)5", {29: 1, 16: 1, 8: 9, 1: 10}),
        ("[Cu(NH3)4]{SO4}", {29: 1, 7: 4, 1: 12, 16: 1, 8: 4}),
        ("Fe\u2082O\u2083", {26: 2, 8: 3}),
        (" Sr Ti O3 ", {38: 1, 22: 1, 8: 3}),
        ("Sr1.0Ti1.0O3.0", {38: 1, 22: 1, 8: 3}),
    ],
)
def test_a_formula_is_the_exact_content_of_a_cell(formula: str, content: dict[int, int]) -> None:
    (cell,) = cells([formula])
    assert cell.name == formula
    assert Counter(cell.numbers) == content


def test_formula_units_multiply_the_reduced_formula() -> None:
    found = cells(["Na2Cl2", "TiO2"], "2-4")
    assert [cell.name for cell in found] == [f"{f} x {n}" for f in ("Na2Cl2", "TiO2") for n in (2, 3, 4)]
    assert [Counter(cell.numbers) for cell in found[:3]] == [{11: n, 17: n} for n in (2, 3, 4)]
    assert [Counter(cell.numbers) for cell in found[3:]] == [{22: n, 8: 2 * n} for n in (2, 3, 4)]
    assert [len(cell.numbers) for cell in cells(["Si8"], "1-2")] == [1, 2]
    assert [len(cell.numbers) for cell in cells(["Na4Cl4"], "3")] == [6]


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("", "not a chemical formula"),
        ("Xx2", "not a chemical formula"),
        ("nacl", "not a chemical formula"),
        ("Li2(Fe", "not a chemical formula"),
        ("Na-1Cl", "not a chemical formula"),
        ("NaCl!", "not a chemical formula"),
        ("Na1.5Cl", "wants whole numbers of atoms; write Na3Cl2, or a multiple of it"),
        ("La0.5Sr0.5MnO3", "wants whole numbers of atoms; write LaSrMn2O6, or a multiple of it"),
        ("Na.5Cl", "wants whole numbers of atoms; write NaCl2"),
        ("Na1.1234567Cl", "wants whole numbers of atoms; multiply them until they are whole"),
        ("CuSO4.5H2O", "write CuSO4(H2O)5"),
        ("CuSO4\u00b75H2O", "write CuSO4(H2O)5"),
        ("CuSO4*5H2O", "write CuSO4(H2O)5"),
        ("NaCl.H2O", "write NaCl(H2O)"),
        ("(CuSO4.5H2O)2", "write (CuSO4(H2O)5)2"),
        ("2CuSO4\u22c55H2O", "write (CuSO4(H2O)5)2"),
        ("Ca(OH)2.2H2O", "write Ca(OH)2(H2O)2"),
        ("(CuSO4\u00b75H2O\u00b72NH3)2", "write (CuSO4(H2O)5(NH3)2)2"),
        ("CaSO4\u00b70.5H2O", "write CaSO4(H2O)0.5"),
        ("CaSO4.0.5H2O", "write CaSO4(H2O)0.5"),
        ("CuSO4.5(H2O)", "write CuSO4(H2O)5"),
        ("CuSO4\u30fb5H2O", "write CuSO4(H2O)5"),
        ("K4[Fe(CN)6].3H2O", "write K4[Fe(CN)6](H2O)3"),
        ("Al2O3.2SiO2.2H2O", "write Al2O3(SiO2)2(H2O)2"),
        ("(Al2O3.2SiO2)5", "if a dot joins two formulas, put the second into brackets"),
        ("Fe(III)2O3", "leave oxidation states out"),
        ("Cu(I)Cl", "leave oxidation states out"),
        ("NaCl0", "an element has the count 0; leave it out"),
        ("Na(Cl)0", "an element has the count 0; leave it out"),
        ("Sr2+Ti4+O3", "leave charges and isotopes out"),
        ("Sr\u00b2\u207aTiO3", "leave charges and isotopes out"),
        ("\u00b9\u2078O2", "leave charges and isotopes out"),
        ("2H2O", "write the number of units behind brackets, as in (H2O)2"),
        ("srtio3", "element symbols begin with a capital letter"),
        ("Na1e1Cl", "element symbols begin with a capital letter"),
        ("SrTiO3@C60", "not a chemical formula"),
        ("Sr)O", "open every bracket"),
        ("Sr(O", "close every bracket"),
        ("MAPbI3", "no element is called 'M'"),
        ("H1000000000000000000000", "asks for more atoms than can be in a cell"),
        ("Na0", "an element has the count 0; leave it out"),
        ("MdO", "beyond atomic number 100"),
        ("H501", "asks for 501 atoms in a cell, more than 500"),
    ],
)
def test_what_is_no_cell(formula: str, message: str) -> None:
    with pytest.raises(KldmError) as caught:
        cells(["NaCl", formula])
    assert str(caught.value).startswith(f"--formula {formula}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("formula", ["H" + "9" * 10**5, "(" * 10**5 + "H" + ")9" * 10**5, "(" * 10**5, "H" * 10**5])
def test_bombs_are_refused_at_once(formula: str) -> None:
    with pytest.raises(KldmError) as caught:
        cells([formula])
    assert len(str(caught.value)) < 250


def test_the_option_is_named() -> None:
    with pytest.raises(KldmError, match=r"--contains Sr0\.5: wants whole numbers of atoms"):
        cells(["Sr0.5"], option="--contains")
    with pytest.raises(KldmError, match="wants N or N-M formula units"):
        cells(["Sr"], "1-" + "9" * 5000)


def test_an_element_that_is_written_as_a_molecule_is_one_atom() -> None:
    assert [cell.numbers for cell in cells(["O2"], "1-2")] == [(8,), (8, 8)]


@pytest.mark.parametrize("units", ["", "0", "a", "4-1", "1-", "-3", "1.5", "0-2", "1-4-5"])
def test_bad_formula_units(units: str) -> None:
    with pytest.raises(KldmError, match="wants N or N-M formula units; write it like 4 or 1-4"):
        cells(["NaCl"], units)


@given(st.dictionaries(st.integers(1, 100), st.integers(1, 60), max_size=5), st.integers(1, 9))
def test_counts_are_reduced_to_the_least_whole_numbers_of_their_ratio(counts: dict[int, int], factor: int) -> None:
    found = reduced_counts({key: factor * count for key, count in counts.items()})
    assert list(found) == list(counts)
    assert found == reduced_counts(counts)
    if counts:
        (unit,) = {Fraction(counts[key], found[key]) for key in counts}
        assert unit.denominator == 1
        assert not any(all(count % n == 0 for count in found.values()) for n in range(2, 61))


def test_too_many_formula_units() -> None:
    with pytest.raises(KldmError, match="asks for 502 atoms"):
        cells(["NaCl"], "250-300")


def test_a_reduced_formula_of_noble_gases_is_given_without_remarks() -> None:
    assert reduced_formula(Composition("Na2Cl2")) == "NaCl"
    program = (
        "import warnings; warnings.simplefilter('error'); from pymatgen.core.composition import Composition; "
        "from kldm.data.formulas import reduced_formula; print(reduced_formula(Composition({'Xe': 2, 'He': 2})))"
    )  # a process of its own, as pymatgen makes the remark once only
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.stdout.strip() in ("HeXe", "XeHe")
    assert not found.stderr
