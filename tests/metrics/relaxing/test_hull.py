"""Energies above the hull against hand-made hulls and pymatgen's; files that are no reference."""

import bz2
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core.composition import Composition
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import Element
from pymatgen.core.structure import Structure
from pymatgen.entries.computed_entries import ComputedEntry

from kldm.errors import KldmError
from kldm.metrics.relaxing.hull import Hull, above_hull, check_scales, read_hull
from kldm.potentials import EMT, CHGNet

Numbers = tuple[int, int, int]

Entries = Sequence[tuple[str, float]]
"""Formulas with eV per formula."""

BINARY: Entries = (("Na", -1.0), ("Na2", -1.0), ("Cl2", -4.0), ("NaCl", -7.0), ("Na2Cl2", -15.0), ("NaCl3", -9.0))
"""Formation energies, eV/atom: NaCl -2.25 (its second entry), NaCl3 -0.5: above the line from NaCl to Cl."""


def structure(formula: str) -> Structure:
    symbols = [element.symbol for element, n in Composition(formula).items() for _ in range(int(n))]
    return Structure(Lattice.cubic(9), symbols, np.random.default_rng(0).random((len(symbols), 3)))


def written(path: Path, entries: Entries, **more: Any) -> Path:
    path.write_text(json.dumps([ComputedEntry(formula, energy, **more).as_dict() for formula, energy in entries]))
    return path


def hull(tmp_path: Path, entries: Entries) -> Hull:
    return read_hull([written(tmp_path / "entries.json", entries)], "none")


def height(hull: Hull, formula: str, energy: float) -> float | None:
    return above_hull([structure(formula)], [energy / len(structure(formula))], hull)[0]


@pytest.mark.parametrize(
    ("formula", "energy", "expected"),
    [
        ("NaCl", -7.0, 0.25),
        ("NaCl", -7.5, 0.0),
        ("Na2Cl2", -15.4, -0.1),
        ("Na3Cl", -1.0, (2 * 1.0 + 7.5 - 1.0) / 4),
        ("NaCl3", -9.0, (7.5 + 4.0 - 9.0) / 4),
        ("Na", 0.5, 1.5),
        ("Cl2", -4.0, 0.0),
    ],
)
def test_heights_of_a_binary_system(tmp_path: Path, formula: str, energy: float, expected: float) -> None:
    assert height(hull(tmp_path, BINARY), formula, energy) == pytest.approx(expected, abs=1e-7)


def test_a_system_is_judged_by_the_phases_of_its_subsystems(tmp_path: Path) -> None:
    more = (*BINARY, ("K", -1.0), ("KCl", -8.0), ("NaKCl2", 5.0), ("Br", -1.0), ("NaKBr", -90.0))
    found = height(hull(tmp_path, more), "NaKCl2", -15.0)
    assert found == pytest.approx((7.5 + 8.0 - 15.0) / 4, abs=1e-7)


def test_elements_without_a_phase_are_unsupported(tmp_path: Path) -> None:
    made = hull(tmp_path, (*BINARY, ("KCl", -8.0)))
    assert height(made, "KCl", -8.0) is None
    assert made.lacks(frozenset(("K", "Xe", "Na"))) == {"K", "Xe"}
    assert above_hull([structure("Xe"), structure("Na")], [0.0, -1.0], made) == [None, 0.0]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.tuples(*[st.integers(0, 3)] * 3), st.floats(-3, 3)), max_size=8),
    st.tuples(*[st.integers(1, 4)] * 3),
)
def test_heights_are_pymatgens(extra: list[tuple[Numbers, float]], asked: Numbers) -> None:
    """Its ``PhaseDiagram`` builds the convex hull of which ours asks a linear program for one point."""

    def formula(numbers: Numbers) -> str:
        return "".join(f"{symbol}{n}" for symbol, n in zip(("Li", "Fe", "O"), numbers, strict=True) if n)

    phases = [("Li", 0.0), ("Fe", 0.0), ("O", 0.0), *((formula(n), sum(n) * e) for n, e in extra if sum(n))]
    with TemporaryDirectory() as folder:
        made = read_hull([written(Path(folder) / "entries.json", phases)], "none")
    diagram = PhaseDiagram([PDEntry(Composition(name), energy) for name, energy in phases])
    wanted = PDEntry(Composition(formula(asked)), 0.1 * sum(asked))
    expected = diagram.get_e_above_hull(wanted, allow_negative=True)
    assert above_hull([structure(formula(asked))], [0.1], made) == [pytest.approx(expected, abs=1e-6)]


def test_many_elements_are_no_many_dimensions(tmp_path: Path) -> None:
    """A convex hull of pymatgen's takes minutes with ten elements, and for ever with fifteen."""
    symbols = [Element.from_Z(number).symbol for number in range(19, 34)]
    pairs = [(first + second, -1.0) for n, first in enumerate(symbols) for second in symbols[n + 1 :]]
    made = hull(tmp_path, [*((symbol, 0.0) for symbol in symbols), *pairs])
    (found,) = above_hull([structure("".join(symbols))], [0.0], made)
    assert found == pytest.approx(0.5, abs=1e-6)


def test_corrections_of_entries_count(tmp_path: Path) -> None:
    made = read_hull([written(tmp_path / "e.json", [("Na", -1.0), ("Cl2", -4.0)], correction=-0.5)], "mp2020")
    assert made.phases(frozenset(("Na", "Cl"))) == {(("Na", 1.0),): -1.5, (("Cl", 1.0),): -2.25}
    assert (made.scheme, made.entries, made.potential) == ("mp2020", 2, None)


def test_compressed_and_wrapped_files(tmp_path: Path) -> None:
    records = [ComputedEntry(formula, energy).as_dict() for formula, energy in BINARY]
    path = tmp_path / "entries.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"entries": records}).encode()))
    assert read_hull([path], "none").lowest == hull(tmp_path, BINARY).lowest


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_lines_of_entries(tmp_path: Path, suffix: str) -> None:
    lines = "\n".join(json.dumps(ComputedEntry(formula, energy).as_dict()) for formula, energy in BINARY) + "\n\n"
    path = tmp_path / f"entries{suffix}"
    path.write_bytes(gzip.compress(lines.encode()) if suffix.endswith("gz") else lines.encode())
    made = read_hull([path], "none")
    assert (made.lowest, made.entries) == (hull(tmp_path, BINARY).lowest, 6)


def test_tables_and_lists_under_any_key(tmp_path: Path) -> None:
    records = [ComputedEntry(formula, energy).as_dict() for formula, energy in BINARY]
    columns = {"id": {str(n): n for n in range(6)}, "entry": {str(n): record for n, record in enumerate(records)}}
    rows = "\n".join(json.dumps({"material_id": "a", "entry": record}) for record in records)
    contents = {"a.json": json.dumps(columns), "b.jsonl": rows, "c.json": json.dumps({"data": records, "meta": {}})}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        assert read_hull([tmp_path / name], "none").lowest == hull(tmp_path, BINARY).lowest
    (tmp_path / "d.json.bz2").write_bytes(bz2.compress(json.dumps({"entries": records}).encode()))
    assert read_hull([tmp_path / "d.json.bz2"], "none").entries == 6


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"parameters": {"run_type": "R2SCAN"}}, "its run_type is R2SCAN"),
        ({"parameters": {"run_type": "HSE06"}}, "its run_type is HSE06"),
        ({"data": {"thermo_type": "GGA_GGA+U_R2SCAN"}}, "its thermo_type is GGA_GGA"),
        ({"entry_id": "mp-1-r2SCAN"}, "its id is 'mp-1-r2SCAN'"),
        ({"energy_adjustments": [{"name": "MP GGA(+U)/r2SCAN mixing adjustment"}]}, "its correction is 'MP GGA"),
        ({"energy_adjustments": [{"cls": {"@class": "MaterialsProjectDFTMixingScheme"}}]}, "its correction is "),
        ({"parameters": {"xc_functional": "SCAN"}}, "its xc_functional is SCAN"),
        ({"parameters": {"task_type": "r2SCAN Static"}}, "its parameters say 'r2SCAN Static'"),
        ({"parameters": {"potcar_spec": [{"titel": "PAW_PBEsol Mg"}]}}, "its parameters say 'PAW_PBEsol Mg'"),
        ({"energy": True}, "it is not an entry with a composition and a finite energy"),
        ({"energy_adjustments": [{"value": -1.0}], "correction": None}, "but no 'correction' that sums them up"),
    ],
)
def test_energies_of_other_functionals_are_refused(tmp_path: Path, more: dict[str, Any], told: str) -> None:
    path = tmp_path / "entries.json"
    path.write_text(json.dumps([ENTRY, {**ENTRY, **more}]))
    with pytest.raises(KldmError, match=r"entries\.json, entry 1: ") as caught:
        read_hull([path], "mp2020")
    assert told in str(caught.value)


def test_corrections_that_are_there_or_not(tmp_path: Path) -> None:
    path = written(tmp_path / "entries.json", [("O2", -9.0), ("MgO", -12.0)], correction=-0.7)
    with pytest.raises(KldmError, match=r"entry 0: its correction is -0.7 eV, although corrections are none"):
        read_hull([path], "none")
    assert read_hull([path], "mp2020").notes == ()
    (note,) = read_hull([written(path, [("O2", -9.0), ("MgO", -12.0)])], "mp2020").notes
    assert "no entry has a correction, although corrections are mp2020" in note


def test_energies_of_pbe_are_taken(tmp_path: Path) -> None:
    """The corrections of MP2020 among GGA and GGA+U have 'mixing' in their names too."""
    adjustments = [{"name": "MP2020 GGA/GGA+U mixing correction (Fe)", "value": -2.0, "cls": None}]
    entry = {"composition": {"Fe": 1.0}, "energy": -8.0, "correction": -2.0, "energy_adjustments": adjustments}
    path = tmp_path / "entries.json"
    path.write_text(json.dumps([{**entry, "parameters": {"run_type": run}} for run in ("GGA", "GGA+U", None)]))
    made = read_hull([path], "mp2020")
    assert (made.lowest, made.notes) == ({frozenset(("Fe",)): {(("Fe", 1.0),): -10.0}}, ())


def test_energies_far_from_all_others_are_noted(tmp_path: Path) -> None:
    (note,) = hull(tmp_path, (*BINARY, ("NaCl", -100.0))).notes
    assert "the lowest entry of NaCl (-50 eV/atom) lies more than 1 eV/atom below all others" in note
    (note,) = hull(tmp_path, (("Na", -1.0), ("Cl2", -4.0), ("NaCl", -100.0))).notes
    assert "NaCl (-50 eV/atom) lies more than 6 eV/atom from its elements" in note
    assert hull(tmp_path, BINARY).notes == ()


def test_oxidation_states_of_entries_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "entries.json"
    path.write_text(json.dumps([{"composition": {"Fe2+": 1.0, "Fe3+": 2.0, "O2-": 4.0}, "energy": -7.0}]))
    (formula,) = read_hull([path], "none").lowest[frozenset(("Fe", "O"))]
    assert dict(formula) == pytest.approx({"Fe": 3 / 7, "O": 4 / 7})


def test_heavy_hydrogen_is_hydrogen(tmp_path: Path) -> None:
    path = tmp_path / "entries.json"
    path.write_text(json.dumps([{"composition": {"D": 1.0, "H": 1.0}, "energy": -2.0}]))
    assert read_hull([path], "none").lowest == {frozenset("H"): {(("H", 1.0),): -1.0}}


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path / "entries.json", [("Na", -1.0)])
    assert read_hull([path], "none") is read_hull([path], "none")
    written(path, [("Na", -2.0), ("K", -1.0)])
    assert read_hull([path], "none").entries == 2


def test_several_files_are_one_hull(tmp_path: Path) -> None:
    paths = [written(tmp_path / "a.json", BINARY[:3]), written(tmp_path / "b.json", BINARY[3:])]
    made = read_hull(paths, "none")
    assert (made.lowest, made.entries) == (hull(tmp_path, BINARY).lowest, 6)
    assert made.names == tuple(map(str, paths))
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(KldmError, match=r"b\.json: the file has no list of entries"):
        read_hull(paths, "none")


def test_energies_of_a_potential_are_compared_with_its_own_alone(tmp_path: Path) -> None:
    own = {"potential": dict(EMT().identity)}
    made = read_hull([written(tmp_path / "e.json", BINARY, parameters=own)], None)
    check_scales(made, "own", EMT().identity)
    with pytest.raises(KldmError, match="relax the reference with the same potential"):
        check_scales(made, "own", {**EMT().identity, "ase": "3.0"})
    with pytest.raises(KldmError, match="leave the corrections out"):
        read_hull([tmp_path / "e.json"], "mp2020")


@pytest.mark.parametrize(
    ("scheme", "scale", "fits"),
    [
        ("none", "uncorrected", True),
        ("mp2020", "uncorrected", True),
        ("mp2020", "mp2020", True),
        ("none", "mp2020", False),
        ("mp2020", "own", False),
        ("none", "own", False),
    ],
)
def test_scales_that_may_be_compared(tmp_path: Path, scheme: Any, scale: Any, fits: bool) -> None:
    made = read_hull([written(tmp_path / "e.json", BINARY)], scheme)
    if fits:
        check_scales(made, scale, {"name": "some.v1"})
        return
    with pytest.raises(KldmError, match=r"energies of some\.v1 compare only"):
        check_scales(made, scale, {"name": "some.v1"})


def test_scales_of_the_potentials() -> None:
    assert EMT().scale == "own"
    assert CHGNet().scale == "mp2020"
    assert CHGNet(model="r2scan").scale == "own"


def test_corrections_must_be_stated(tmp_path: Path) -> None:
    with pytest.raises(KldmError, match="set corrections to those that the energies contain"):
        read_hull([written(tmp_path / "e.json", BINARY)], None)


def test_potentials_are_not_mixed(tmp_path: Path) -> None:
    entries = [ComputedEntry("Na", -1.0, parameters={"potential": {"name": "a"}}).as_dict()]
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps([*entries, ComputedEntry("Cl", -1.0).as_dict()]))
    with pytest.raises(KldmError, match=r"mixed\.json, entry 1: its energy is of another potential"):
        read_hull([path], "none")


ENTRY: Mapping[str, Any] = {"composition": {"Na": 1.0}, "energy": -1.0}


@pytest.mark.parametrize(
    "record",
    [
        {},
        3,
        None,
        {**ENTRY, "energy": "much"},
        {**ENTRY, "energy": float("nan")},
        {**ENTRY, "composition": {}},
        {**ENTRY, "composition": {"Qq": 1.0}},
        {**ENTRY, "composition": {"Na": -1.0}},
        {**ENTRY, "composition": {"Na": float("inf")}},
        {**ENTRY, "composition": {"Na": 1.0, "Cl": 1e-12}},
        {**ENTRY, "energy": 10**400},
        {**ENTRY, "composition": "NaCl"},
        {**ENTRY, "parameters": "none"},
        {**ENTRY, "parameters": {"potential": "emt"}},
    ],
)
def test_an_entry_that_is_none_is_named(tmp_path: Path, record: Any) -> None:
    path = tmp_path / "entries.json"
    path.write_text(json.dumps([ENTRY, record]))
    with pytest.raises(KldmError, match=r"entries\.json, entry 1: "):
        read_hull([path], "none")


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b"3", b"{}", b"\xff\xfe", b'{"entries": {}}'])
@pytest.mark.parametrize("name", ["entries.json", "entries.json.gz"])
def test_a_file_that_is_none_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(KldmError, match=rf"{name}: .*pymatgen's ComputedEntry dicts"):
        read_hull([path], "none")
    with pytest.raises(KldmError, match="cannot be read"):
        read_hull([tmp_path / "absent.json"], "none")
