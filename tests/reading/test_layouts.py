"""JSON as other programs lay it out: every structure is read, or the file is refused in a sentence."""

import bz2
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import Species
from pymatgen.core.structure import Structure
from pymatgen.entries.computed_entries import ComputedStructureEntry
from pymatgen.io.cif import CifWriter

from kldm.errors import KldmError
from kldm.interfaces import UNPLACED
from kldm.reading import SampleFile, read_file
from kldm.reading.layouts import only_record, read_items


def salt(cation: str) -> Structure:
    return Structure(Lattice.cubic(4.0), [cation, "Cl"], np.array([[0, 0, 0], [0.5, 0.5, 0.5]]))


PAIR = (salt("Na"), salt("Cs"))
DICTS = tuple(structure.as_dict() for structure in PAIR)
ENTRIES = tuple(ComputedStructureEntry(structure, -5.0).as_dict() for structure in PAIR)
TABLE = pd.DataFrame({"material_id": ["m1", "m2"], "structure": DICTS, "gap": [1.0, 2.0]})
OF_ENTRIES = pd.DataFrame({"material_id": ["m1", "m2"], "computed_structure_entry": ENTRIES})
NAMES, NONE = ("m1", "m2"), ("", "")
LINES = "\n".join(map(json.dumps, DICTS))


def read(path: Path, content: Any) -> SampleFile:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_file(path)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        *((TABLE.to_json(orient=orient), NAMES) for orient in ("columns", "records", "index", "split", "table")),
        (TABLE.set_index("material_id").to_json(), NAMES),
        (TABLE.to_json(orient="values"), NONE),
        (TABLE.to_json(orient="records", lines=True), NAMES),
        (TABLE.to_dict("list"), NAMES),
        (OF_ENTRIES.to_json(), NAMES),
        (OF_ENTRIES.to_json(orient="records", lines=True), NAMES),
        (dict(zip(NAMES, DICTS, strict=True)), NAMES),
        (
            {"data": [{"material_id": "m1", "structure": DICTS[0]}, {"id": "m2", "structure": DICTS[1]}], "meta": {}},
            NAMES,
        ),
        ({"entries": ENTRIES}, NONE),
        ([[structure, 1.0] for structure in DICTS], NONE),
        (
            [{"cif": str(CifWriter(structure)), "material_id": n} for n, structure in zip(NAMES, PAIR, strict=True)],
            NAMES,
        ),
        ({"cifs": [str(CifWriter(structure)) for structure in PAIR]}, NONE),
        ([json.dumps(structure) for structure in DICTS], NONE),
        ([{"structure": json.dumps(structure), "name": n} for n, structure in zip(NAMES, DICTS, strict=True)], NAMES),
        ([{"relaxed_structure": structure, "energy": 1} for structure in DICTS], NONE),
        (LINES, NONE),
        (json.dumps(DICTS, indent=1), NONE),
    ],
)
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_layouts(tmp_path: Path, name: str, content: Any, names: tuple[str, str]) -> None:
    file = read(tmp_path / name, content)
    assert [c.structure for c in file.candidates] == list(PAIR)
    assert file.names == names


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([{"atoms": {"lattice_mat": [], "coords": []}}], "entry 0: it is a structure of JARVIS and not of pymatgen"),
        ([{"attributes": {"lattice_vectors": []}}], "entry 0: it is a structure of OPTIMADE"),
        ({"data": [{"id": 1, "attributes": {"lattice_vectors": []}}], "meta": {}}, "it is a structure of OPTIMADE"),
        ({"1": {"positions": [], "cell": []}, "ids": [1]}, "it is a structure of ASE"),
        ([{"a": DICTS[0], "b": DICTS[1]}], r"it has several structures \('a', 'b'\); keep one of them"),
        ({"first": [DICTS[0]], "second": [DICTS[1], 1]}, "it holds several lists"),
        ({"x": 1, "y": 2}, r"it has no 'structure' \(found: x, y\); write pymatgen's"),
        ("[3]", "entry 0: it is a number and not a structure"),
        (LINES.replace("\n", ",\n"), r"the file is not JSON \(Extra data\)"),
        (f'{{"target": {"1" * 5000}}}', r"x.json: the file is not JSON \(Exceeds the limit"),
        ([{"structure": "none"}], "its 'structure' is a text that is neither JSON nor a CIF"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: Any, told: str) -> None:
    with pytest.raises(KldmError, match=told) as caught:
        read(tmp_path / "x.json", content)
    assert str(caught.value).startswith(str(tmp_path / "x.json"))


def test_bad_lines_and_entries_fail_alone(tmp_path: Path) -> None:
    kldms = '{"target": 2, "candidate": 1, "structure": {"latt'
    rows = [json.dumps({"target": n, "candidate": 0, "structure": DICTS[0]}) for n in (0, 1)]
    file = read(tmp_path / "x.jsonl", "\n".join([*rows, kldms]))
    assert [(c.target, c.candidate, c.structure is None) for c in file.candidates][2] == (2, 1, True)
    assert file.notes == (
        f"{tmp_path / 'x.jsonl'}: 1 of 3 structures: they cannot be read: the line is not JSON (Unterminated string "
        f"starting at) (the first is {tmp_path / 'x.jsonl'}:3).",
    )
    file = read(tmp_path / "x.jsonl", "\n".join([*rows, "{"]))
    assert [(c.target, c.candidate) for c in file.candidates] == [(0, 0), (1, 0), (UNPLACED, 2)]
    assert "1 of 3 structures: they cannot be read: the line is not JSON" in file.notes[0]
    file = read(tmp_path / "x.json", [DICTS[0], {"formula": "NaCl"}, None])
    assert [c.reason for c in file.candidates] == ["", "it has no 'structure' (found: formula)", "no structure"]


def test_disordered_structures_fail(tmp_path: Path) -> None:
    mixed = {"species": [{"element": "Na", "occu": 0.5}, {"element": "K", "occu": 0.5}], "abc": [0, 0, 0]}
    half = {"species": [{"element": "Na", "occu": 0.5}], "abc": [0, 0, 0]}
    file = read(tmp_path / "x.json", [{**DICTS[0], "sites": [site]} for site in (mixed, half)])
    assert [c.reason for c in file.candidates] == ["it is disordered"] * 2


def test_decorations_are_left_out(tmp_path: Path) -> None:
    """Spins, oxidation states, isotopes and properties of sites are no part of a crystal here."""
    spins = Structure(PAIR[0].lattice, [Species("Na", None, spin=1), Species("Cl", -1)], PAIR[0].frac_coords)
    spins.add_site_property("magmom", [0.1, -0.1])
    file = read(tmp_path / "x.json", [spins.as_dict(), json.loads(json.dumps(DICTS[0]).replace('"Na"', '"D"'))])
    assert [c.structure.formula for c in file.candidates if c.structure] == ["Na1 Cl1", "H1 Cl1"]
    assert file.candidates[0].structure == PAIR[0]


def test_periodicity_is_noted(tmp_path: Path) -> None:
    slab = {**DICTS[0], "lattice": {**DICTS[0]["lattice"], "pbc": [True, True, False]}}
    assert "pbc T T F" in read(tmp_path / "x.json", [slab, DICTS[1]]).notes[0]


SITE = {"species": [{"element": "Na", "occu": 1}], "abc": [0, 0, 0]}


def crystal(edges: list[float], first: Sequence[Any] = (0.1, 0.1, 0.1)) -> dict[str, Any]:
    return {"lattice": {"matrix": np.diag(edges).tolist()}, "sites": [{**SITE, "abc": first}, SITE]}


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        (crystal([1e10] * 3), "a cell edge is longer than 300 angstrom"),
        (crystal([5000.0, 3, 3]), "a cell edge is longer than 300 angstrom"),
        (crystal([1e300] * 3), "the cell holds a number that is not finite"),
        (crystal([1e-3] * 3), "its lattice planes or atoms lie impossibly close"),
        (crystal([300.0, 300, 0.05]), "its lattice planes or atoms lie impossibly close"),
        (crystal([4.0] * 3, [0, 1e12, 0]), "a coordinate lies more than 1e+06 cells away"),
        (crystal([4.0] * 3, [0, float("nan"), 0]), "the coordinates hold a number that is not finite"),
        (crystal([4.0] * 3, [0, float("inf"), 0]), "the coordinates hold a number that is not finite"),
        (crystal([4.0] * 3, [0, 10**400, 0]), "a coordinate is not made of 3 numbers"),
        (crystal([10**400, 4, 4]), "a cell is not made of 9 numbers"),
        ({**crystal([50.0] * 3), "sites": [SITE] * 3001}, "it has more than 3000 atoms"),
    ],
)
def test_huge_numbers_are_reasons(tmp_path: Path, structure: dict[str, Any], reason: str) -> None:
    """They would take any memory, or outlast any limit, in the search for neighbours."""
    file = read(tmp_path / "x.jsonl", f"{json.dumps(DICTS[0])}\n{json.dumps(structure)}")
    assert [c.reason for c in file.candidates] == ["", reason]
    assert len(file.candidates[1].species) == len(structure["sites"])


def test_coordinates_far_away_are_wrapped(tmp_path: Path) -> None:
    (only,) = read(tmp_path / "x.json", crystal([4.0] * 3, [7.25, -1000.5, 1.5])).candidates
    assert only.structure is not None
    assert only.structure.frac_coords[0].tolist() == [0.25, 0.5, 1.5]


def test_texts_of_strangers_can_be_printed(tmp_path: Path) -> None:
    text = "\x1b[2J\ud800 a\r\nb" + "c" * 10**6
    rows = [{"structure": None, "reason": text}, {"structure": DICTS[0], "name": text}]
    file = read(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)))
    for printed in (file.candidates[0].reason, file.names[1]):
        assert printed.startswith("?[2J? a bccc")
        assert len(printed) == 500
        printed.encode()


def test_bzip2_and_other_records(tmp_path: Path) -> None:
    """The layouts serve other records too, such as the entries of a hull."""
    path = tmp_path / "x.json.bz2"
    path.write_bytes(bz2.compress(json.dumps({"entry": {"a": {"energy": 1}, "b": {"energy": 2}}}).encode()))

    def is_record(value: Any) -> bool:
        return isinstance(value, dict) and "energy" in value

    items = list(read_items(path, is_record))
    assert [(name, only_record(value, is_record)) for _, name, value in items] == [
        ("a", ({"energy": 1}, {})),
        ("b", ({"energy": 2}, {})),
    ]
