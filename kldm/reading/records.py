"""JSON and JSON lines with pymatgen's dicts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from tqdm import tqdm

from kldm.errors import KldmError
from kldm.reading.rows import Row, failure_reason, is_selected, labels, open_text

NAMES = ("material_id", "entry_id", "name", "id")
"""Keys under which records carry their name; the first that is there counts."""

LISTS = ("structures", "entries")
"""Keys under which a JSON object may hold the list of its structures."""


def read_jsonl(path: Path) -> Sequence[Row]:
    """One record per line; empty lines are skipped."""
    rows = []
    with open_text(path) as file:
        for number, line in enumerate(
            tqdm(file, desc=f"reading {path.name}", unit="row", delay=2, disable=None), start=1
        ):
            if line.strip():
                place = f"{path}:{number}"
                rows.append(_row(_parsed(line, "the line is not JSON", place), place))
    return rows


def read_json(path: Path) -> Sequence[Row]:
    """A structure, a list of structures or of records, or a mapping from names to either."""
    with open_text(path) as file:
        content = _parsed(file.read(), "the file is not JSON", str(path))
    entries = list(_entries(content, str(path)))
    bar = tqdm(entries, desc=f"reading {path.name}", unit="structure", delay=2, disable=None)
    return [_row(entry, f"{path}, {label}", name) for label, name, entry in bar]


def _parsed(text: str, problem: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KldmError(problem, place=place, remedy="write it again; it may be cut short") from error


def _entries(content: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    """(place in the file, name if it is a key, record) of each structure."""
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
        return _with_structure(Row(place, None, name=name), record)
    target, candidate = labels(record, place)
    name = name or next((str(record[key]) for key in NAMES if isinstance(record.get(key), str | int)), "")
    row = Row(place, None, str(record.get("reason") or ""), target, candidate, name, _numbers(record.get("species")))
    return _with_structure(attrs.evolve(row, selected=is_selected(record, place)), record["structure"])


def _numbers(values: Any) -> tuple[int, ...]:
    """The atomic numbers in a record without structure; empty if they are none."""
    valid = isinstance(values, list) and all(type(value) is int and 1 <= value <= 118 for value in values)
    return tuple(values) if valid else ()


def _species(value: Any) -> tuple[int, ...]:
    """The atomic numbers of the sites of a structure that cannot be built; empty if they are no elements."""
    from pymatgen.core.periodic_table import Element

    try:
        return tuple(Element(site["species"][0]["element"]).Z for site in value["sites"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return ()


def _with_structure(row: Row, value: Any) -> Row:
    """The row with the structure of a dict, or with the reason why there is none."""
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
    except Exception as error:  # a dict may hold any nonsense, which fails this candidate alone
        return attrs.evolve(row, reason=failure_reason(error), species=_species(value))
