"""JSON files as programs lay them out: one record, lists, JSON lines, mappings from names, and tables of pandas."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from kldm.errors import KldmError
from kldm.reading.rows import one_line
from kldm.runtime.opening import open_text

IsRecord = Callable[[Any], bool]
"""Whether a value is one of the records that are looked for."""

_LABELLED = re.compile(r'\s*\{"target": (\d{1,9}), "candidate": (\d{1,9}), ')
"""How the lines of kldm begin."""


@attrs.frozen
class Unparsed:
    """A line that is not JSON, with what is wrong and the numbers with which it begins, if it is a line of kldm."""

    problem: str
    target: int | None = None
    candidate: int | None = None


Item = tuple[str, str, Any]
"""Place in the file, name (a key or a label of a table's row; may be empty) and the value, or ``Unparsed``."""


def read_items(path: Path, is_record: IsRecord) -> Iterator[Item]:
    """The values of a file among which its records are: ``only_record`` tells them from values of another kind.

    Raises:
        KldmError: the file is not JSON, or there is no list, table or mapping of records in it.
    """
    name = path.name.lower().removesuffix(".gz").removesuffix(".bz2")
    if name.endswith(".jsonl") and _has_lines(path):
        with open_text(path) as file:
            yield from _lines(file, path)
        return
    with open_text(path) as file:
        text = file.read()
    if not text.strip():
        return
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        first = text[: error.pos].lstrip()
        if error.msg == "Extra data" and "\n" in first and "\n" not in first.rstrip():  # JSON lines of another name
            yield from _lines(text.split("\n"), path)
            return
        raise KldmError(_not_json("file", error), place=str(path), remedy=_REWRITE) from None
    except (ValueError, RecursionError) as error:
        raise KldmError(_not_json("file", error), place=str(path), remedy=_REWRITE) from None
    for label, key, value in _entries(content, is_record, str(path)):
        yield f"{path}, entry {label}" if label else str(path), key, value


def only_record(value: Any, is_record: IsRecord) -> tuple[Any, Mapping[str, Any]] | None:
    """The record in a value, and what stands beside it: the value itself, or the only record in a list or under a key.
    None if there is none, or more than one."""
    if is_record(value):
        return value, {}
    if isinstance(value, list):
        records = list(filter(is_record, value))
        return (records[0], {}) if len(records) == 1 else None
    if isinstance(value, Mapping):
        keys = record_keys(value, is_record)
        if len(keys) == 1:
            return value[keys[0]], {key: content for key, content in value.items() if key != keys[0]}
    return None


def record_keys(value: Mapping[str, Any], is_record: IsRecord) -> list[str]:
    """The keys of a mapping under which there are records."""
    return [key for key, content in value.items() if is_record(content)]


_REWRITE = "write it again; it may be cut short"


def _not_json(what: str, error: Exception) -> str:
    detail = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
    return one_line(f"the {what} is not JSON ({detail or 'nested too deeply'})")


def _has_lines(path: Path) -> bool:
    """Whether a file has one value per line, and not one value in all."""
    with open_text(path) as file:
        lines = (line.strip() for line in file if line.strip())
        return next(lines, "") not in ("[", "{") and next(lines, "") != ""


def _lines(lines: Any, path: Path) -> Iterator[Item]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                match = _LABELLED.match(line)
                numbers = map(int, match.groups()) if match else ()
                value = Unparsed(_not_json("line", error), *numbers)
            yield f"{path}:{number}", "", value


def _entries(content: Any, is_record: IsRecord, place: str) -> Iterator[tuple[str, str, Any]]:
    """(label for messages, name, value) of each row of a table, entry of a list or of a mapping; no label for a file of
    one value."""
    table = _table(content, is_record)
    if table is not None:
        yield from ((repr(name) if name else str(row), name, record) for row, (name, record) in enumerate(table))
        return
    if isinstance(content, Mapping) and not is_record(content):
        lists = [value for value in content.values() if isinstance(value, list)]
        lists = [value for value in lists if any(only_record(entry, is_record) for entry in value)]
        if len(lists) > 1:
            raise KldmError("it holds several lists of structures or entries", place=place, remedy="keep one of them")
        if not lists and content and all(value is None or only_record(value, is_record) for value in content.values()):
            yield from ((repr(key), str(key), value) for key, value in content.items())
            return
        content = lists[0] if lists else content
    if isinstance(content, list):
        yield from ((str(number), "", entry) for number, entry in enumerate(content))
    else:
        yield "", "", content


def _table(content: Any, is_record: IsRecord) -> list[tuple[str, Mapping[str, Any]]] | None:
    """Name and columns of each row of a table as pandas writes it by ``to_json`` (``split`` or ``columns``) or
    ``to_dict("list")``; None if it is none. Its other layouts are lists and mappings of records."""
    if not isinstance(content, Mapping):
        return None
    columns, data = content.get("columns"), content.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        index = content.get("index")
        names = index if isinstance(index, list) and len(index) == len(data) else [""] * len(data)
        return [
            (str(name), dict(zip(map(str, columns), row, strict=False))) for name, row in zip(names, data, strict=True)
        ]
    values = list(content.values())
    lengths = {len(value) if isinstance(value, list) else -1 for value in values}
    if len(lengths) == 1 and -1 not in lengths and any(_is_column(value, is_record) for value in values):
        return [("", dict(zip(content, row, strict=True))) for row in zip(*values, strict=True)]
    if values and all(isinstance(value, Mapping) and value.keys() == values[0].keys() for value in values):
        by_rows = all(only_record(value, is_record) for value in values)
        if not by_rows and any(_is_column(list(value.values()), is_record) for value in values):
            return [(str(row), {column: content[column][row] for column in content}) for row in values[0]]
    return None


def _is_column(values: list[Any], is_record: IsRecord) -> bool:
    """Whether a column holds records, or null."""
    return any(map(is_record, values)) and all(value is None or is_record(value) for value in values)
