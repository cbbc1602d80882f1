"""JSON and JSON lines with pymatgen's dicts, or with CIFs as text."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from tqdm import tqdm

from kldm.data.structures import (
    ImpossibleError,
    StructureError,
    known_species,
    numbers_of,
    periodicity_note,
    structure_of,
)
from kldm.errors import KldmError
from kldm.reading.cifs import read_texts
from kldm.reading.layouts import Unparsed, only_record, read_items, record_keys
from kldm.reading.rows import Row, is_selected, labels, name_of

_REMEDY = "write pymatgen's Structure.as_dict() under the key 'structure', and null where there is none"

_FOREIGN = (
    ("lattice_mat", "it is a structure of JARVIS and not of pymatgen"),
    ("lattice_vectors", "it is a structure of OPTIMADE and not of pymatgen"),
    ("positions", "it is a structure of ASE and not of pymatgen"),
)
"""Keys by which the dicts of other programs are told."""


def read_json(path: Path) -> Sequence[Row]:
    """The structures of a file in any layout that ``kldm.reading.layouts`` knows.

    Raises:
        KldmError: the file is not JSON, or none of its values is or holds a structure.
    """
    rows: list[Row] = []
    foreign: list[KldmError] = []
    texts: dict[int, str] = {}
    bar = tqdm(read_items(path, _is_record), desc=f"reading {path.name}", unit="row", delay=2, disable=None)
    for place, name, value in bar:
        try:
            row, content = _labelled(value, place, name)
        except _ForeignError as error:
            foreign.append(KldmError(str(error), place=place, remedy=error.remedy))
            rows.append(Row(place, None, str(error), error.target, error.candidate, name, unread=True))
            continue
        if isinstance(content, str) and "_cell_length_a" in content:
            texts[len(rows)] = content
        rows.append(row if len(rows) in texts else _with_structure(row, content))
    if foreign and len(foreign) == len(rows):
        raise foreign[0]
    for number, parsed in zip(texts, _parsed(texts, rows, path.name), strict=True):
        row = rows[number]
        rows[number] = attrs.evolve(parsed, target=row.target, candidate=row.candidate, selected=row.selected)
    return rows


def _parsed(texts: Mapping[int, str], rows: Sequence[Row], title: str) -> Sequence[Row]:
    """The rows of the CIFs among the texts."""
    names, places = [rows[number].name for number in texts], [rows[number].place for number in texts]
    return read_texts(list(texts.values()), names, places, title) if texts else []


class _ForeignError(Exception):
    """A value is or holds no structure; the message is the reason."""

    def __init__(self, reason: str, remedy: str, target: int | None = None, candidate: int | None = None) -> None:
        super().__init__(reason)
        self.remedy, self.target, self.candidate = remedy, target, candidate


def _is_structure(value: Any) -> bool:
    """Whether a value is pymatgen's dict of a structure, or a text of one or of a CIF."""
    if isinstance(value, str):
        return "_cell_length_a" in value or (re.match(r"\s*\{", value) is not None and '"sites"' in value)
    return isinstance(value, Mapping) and "lattice" in value and "sites" in value


def _is_record(value: Any) -> bool:
    return _is_structure(value) or (isinstance(value, Mapping) and ("structure" in value or _has_cif(value)))


def _has_cif(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("cif"), str)


def _labelled(value: Any, place: str, name: str) -> tuple[Row, Any]:
    """A row with everything but its structure, and what the structure is to be built from."""
    if isinstance(value, Unparsed):
        raise _ForeignError(value.problem, "write it again; it may be cut short", value.target, value.candidate)
    if value is None:
        return Row(place, None, name=name), None
    match = only_record(value, _is_record)
    if match is None:
        raise _foreign(value)
    content, rest = match
    record = {**rest, "structure": content} if _is_structure(content) else {**rest, **content}
    if "structure" not in record:
        record["structure"] = record["cif"]
    target, candidate = labels(record, place)
    called = name_of(record) or name
    row = Row(
        place, None, str(record.get("reason") or ""), target, candidate, called, known_species(record.get("species"))
    )
    return attrs.evolve(row, selected=is_selected(record, place)), record["structure"]


def _foreign(value: Any) -> _ForeignError:
    if not isinstance(value, Mapping):
        return _ForeignError(f"it is a {_KINDS.get(type(value), 'number')} and not a structure", _REMEDY)
    several = record_keys(value, _is_record)
    if several:
        names = ", ".join(map(repr, several[:4]))
        return _ForeignError(f"it has several structures ({names})", "keep one of them, under the key 'structure'")
    keys = _keys(value)
    for key, reason in _FOREIGN:
        if key in keys:
            return _ForeignError(reason, _REMEDY)
    return _ForeignError(f"it has no 'structure' (found: {', '.join(map(str, list(value)[:6]))})", _REMEDY)


def _keys(value: Any, depth: int = 4) -> set[Any]:
    """The keys of a mapping and of those within it, of lists their first entry's."""
    if depth == 0 or not isinstance(value, Mapping | list):
        return set()
    parts = list(value.values()) if isinstance(value, Mapping) else value[:1]
    return set(value if isinstance(value, Mapping) else ()).union(*(_keys(part, depth - 1) for part in parts))


_KINDS: Mapping[type, str] = {list: "list", str: "text", bool: "truth value"}


def _with_structure(row: Row, value: Any) -> Row:
    """The row with the structure of a dict, or with the reason why there is none."""
    if value is None:
        return attrs.evolve(row, reason=row.reason or "no structure")
    try:
        if isinstance(value, str):
            value = _decoded(value)
        lattice = value.get("lattice") if isinstance(value, Mapping) else None
        if isinstance(lattice, Mapping) and lattice.get("matrix", ()) is None:
            return attrs.evolve(row, reason=row.reason or "no cell", species=numbers_of(value))
        note = periodicity_note(pbc) if (pbc := _periodicity(lattice)) else ""
        return attrs.evolve(row, structure=structure_of(value), species=(), note=note)
    except StructureError as error:
        return attrs.evolve(
            row, reason=str(error), species=numbers_of(value), unread=not isinstance(error, ImpossibleError)
        )


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise StructureError("its 'structure' is a text that is neither JSON nor a CIF") from None


def _periodicity(lattice: Any) -> Sequence[object]:
    pbc = lattice.get("pbc") if isinstance(lattice, Mapping) else None
    return pbc if isinstance(pbc, list) and len(pbc) == 3 else ()
