"""JSON and JSON lines of pymatgen's dicts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from tqdm import tqdm

from kldm.errors import KldmError
from kldm.reading.rows import Row, chosen, labels, opened, refusal

NAMES = ("material_id", "entry_id", "name", "id")
"""Keys under which records carry their name, the first found counts."""

LISTS = ("structures", "entries")
"""Keys under which a JSON object may hold the list of its structures."""


def read_jsonl(path: Path) -> Sequence[Row]:
    """One record a line; empty lines count for nothing."""
    rows = []
    with opened(path) as file:
        for number, line in enumerate(
            tqdm(file, desc=f"reading {path.name}", unit="row", delay=2, disable=None), start=1
        ):
            if line.strip():
                place = f"{path}:{number}"
                rows.append(_row(_parsed(line, "the line is not JSON", place), place))
    return rows


def read_json(path: Path) -> Sequence[Row]:
    """A structure, a list of structures or of records, or a mapping from names to either."""
    with opened(path) as file:
        content = _parsed(file.read(), "the file is not JSON", str(path))
    entries = list(_entries(content, str(path)))
    bar = tqdm(entries, desc=f"reading {path.name}", unit="structure", delay=2, disable=None)
    return [_row(entry, f"{path}, {label}", name) for label, name, entry in bar]


def _parsed(text: str, problem: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KldmError(problem, place=place, remedy="write it again, it may be cut short") from error


def _entries(content: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    """Where in the file, the name if that is a key, and the record, of each structure."""
    if isinstance(content, Mapping) and not _is_record(content):
        lists = [content[key] for key in LISTS if isinstance(content.get(key), list)]
        if not lists:
            yield from ((f"entry {key!r}", str(key), entry) for key, entry in content.items())
            return
        content = lists[0]
    entries = content if isinstance(content, list) else [content]
    yield from ((f"entry {number}", "", entry) for number, entry in enumerate(entries))


def _is_record(value: Any) -> bool:
    return isinstance(value, Mapping) and ("structure" in value or ("lattice" in value and "sites" in value))


def _row(record: Any, place: str, name: str = "") -> Row:
    if not _is_record(record):
        raise KldmError("the row has no 'structure'", place=place, remedy="write null where there is none")
    if "structure" not in record:
        return _built(record, Row(place, None, name=name))
    target, candidate = labels(record, place)
    called = name or next((str(record[key]) for key in NAMES if isinstance(record.get(key), str | int)), "")
    row = Row(place, None, str(record.get("reason") or ""), target, candidate, called, _numbers(record.get("species")))
    row = attrs.evolve(row, selected=chosen(record, place))
    return _built(record["structure"], row)


def _numbers(values: Any) -> tuple[int, ...]:
    """Atomic numbers beside a structure that is null; nothing where they are none."""
    known = isinstance(values, list) and all(type(value) is int and 1 <= value <= 118 for value in values)
    return tuple(values) if known else ()


def _species(value: Any) -> tuple[int, ...]:
    """Atomic numbers of the sites of a dict whose cell is none; nothing where they are no elements."""
    from pymatgen.core.periodic_table import Element

    try:
        return tuple(Element(site["species"][0]["element"]).Z for site in value["sites"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return ()


def _built(value: Any, row: Row) -> Row:
    """The row with its structure, or with the reason why there is none."""
    from pymatgen.core.structure import Structure

    if value is None:
        return attrs.evolve(row, reason=row.reason or "no structure")
    try:
        lattice = value["lattice"]
        if lattice.get("matrix", ()) is None:
            return attrs.evolve(row, reason=row.reason or "no cell", species=_species(value))
        if any(lattice.get(edge) is not None and lattice[edge] <= 0 for edge in "abc"):
            return attrs.evolve(row, reason="cell length not positive", species=_species(value))
        return attrs.evolve(row, structure=Structure.from_dict(value), species=())
    except Exception as error:  # any nonsense may stand in a dict; it is this candidate's failure
        return attrs.evolve(row, reason=refusal(error), species=_species(value))
