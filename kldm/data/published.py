"""Reads the published CSVs: each row is one crystal, as a CIF text in the column ``cif``."""

import csv
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import inf, nan
from pathlib import Path

import torch
from torch import Tensor

from kldm.data.parsing import Parsed, collect, parse_cif, parse_texts
from kldm.errors import KldmError, nearest
from kldm.runtime.opening import open_text

LONGEST_FIELD = 16 * 2**20
"""Most characters of a CIF text; Python's own limit of 131,072 is too low for large cells."""

TEXTS = ("cif", "structure")
"""Columns that hold structures; the first that is there counts."""

NAMES = (
    *("material_id", "mp_id", "mpid", "mat_id", "entry_id", "structure_id", "sample_id", "identifier", "jid", "auid"),
    *("name", "id", "_id", "label", "sample_idx", "index", "idx", ""),
)
"""Columns of tables, and keys of records and frames, that hold the name of a structure; the first that is there counts.
The index that pandas writes has no name."""

_LARGEST = torch.finfo(torch.float32).max


def read_csv(path: Path, workers: int | None = None) -> Parsed:
    """The Niggli-reduced crystals of a ``.csv`` or ``.csv.gz`` file, in the order of its rows.

    Ids are taken from the first column of ``NAMES``; without one they are the numbers of the rows from 0.

    Args:
        path: the file.
        workers: processes that parse; by default one for each CPU.

    Raises:
        KldmError: the file is no such CSV, or more than one row in a hundred cannot be read.
    """
    ids, cifs, _ = read_rows(path)
    return collect(parse_texts(parse_cif, cifs, f"parsing {path.name}", workers=workers), ids, str(path))


def read_rows(path: Path) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Ids and texts of the structures of a file, unparsed: CIFs or pymatgen's dicts, in a column ``cif`` or
    ``structure``; and the columns ``target`` and ``candidate``, if they are there. The case of letters does not matter.

    Raises:
        KldmError: it is no CSV with such a column.
    """
    ids: list[str] = []
    texts: list[str] = []
    with _rows(path) as reader:
        columns = {column.strip().lower(): column for column in reversed(reader.fieldnames or []) if column is not None}
        column = next((columns[name] for name in TEXTS if name in columns), None)
        if column is None:
            raise _no_structures(list(reader.fieldnames or []), path)
        identity = next((columns[name] for name in NAMES if name in columns), None)
        labels: dict[str, list[str]] = {name: [] for name in ("target", "candidate") if name in columns}
        for number, row in enumerate(reader):
            ids.append((row[identity] if identity is not None else "") or str(number))
            texts.append(row[column] or "")
            for name, values in labels.items():
                values.append(row[columns[name]] or "")
    return ids, texts, labels


def _no_structures(header: list[str], path: Path) -> KldmError:
    """The error that a table has no structures, with what it has."""
    found = ", ".join(column or "(unnamed)" for column in header) or "nothing"
    remedy = "write a CIF, or pymatgen's dict as JSON, into a column 'cif'"
    for separator, name in {";": "semicolons", "\t": "tabs"}.items():
        names = [column.strip(" \"'").lower() for column in (header[0] if len(header) == 1 else "").split(separator)]
        if set(names) & set(TEXTS):
            return KldmError(f"its columns are separated by {name}", place=str(path), remedy="save it with commas")
    return KldmError(f"there is no column 'cif' (found: {found[:200]})", place=str(path), remedy=remedy)


def read_columns(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Columns of numbers of a ``.csv`` or ``.csv.gz`` file: float32 [rows] by name. An empty cell or ``nan`` is NaN.

    Raises:
        KldmError: the file has no such column, or a cell holds something other than a number.
    """
    columns: dict[str, list[float]] = {name: [] for name in names}
    with _rows(path) as reader:
        header = list(reader.fieldnames or [])
        for name in names:
            if name not in header:
                raise no_column(name, header, path)
            if header.count(name) > 1:
                raise KldmError(f"{header.count(name)} columns are called {name!r}", place=str(path))
        line = reader.line_num + 1
        for row in reader:
            for name, numbers in columns.items():
                numbers.append(_number(row[name], name, f"{path}, row in line {line}"))
            line = reader.line_num + 1
    return {name: torch.tensor(numbers, dtype=torch.float32) for name, numbers in columns.items()}


def no_column(name: str, known: Iterable[str], path: Path) -> KldmError:
    """The error that a file lacks a column; its remedy is the column with the nearest name."""
    names = [column for column in known if column]
    remedy = nearest(name, names) or (f"it has {', '.join(names)}" if names else "it has none")
    return KldmError(f"there is no column {name!r}", place=str(path), remedy=remedy)


def _number(text: str | None, name: str, place: str) -> float:
    """The number in a cell; NaN if the cell is empty or missing."""
    if text is None or not text.strip():
        return nan
    try:
        value = float(text)
    except ValueError:
        value = inf
    if abs(value) > _LARGEST:
        problem = f"{name} is {text!r}, which is no finite number"
        raise KldmError(problem, place=place, remedy="leave the cell empty where the value is not known")
    return value


@contextmanager
def _rows(path: Path) -> Iterator["csv.DictReader[str]"]:
    """The rows of a file. Raises ``KldmError`` if it cannot be opened, or cannot be read within the block."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    try:
        with open_text(path, errors="strict", newline="") as file:
            yield csv.DictReader(file)
    except UnicodeDecodeError:
        raise KldmError("it is not UTF-8", place=str(path), remedy="save it as UTF-8") from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise KldmError(f"cannot be read ({error})", place=str(path), remedy="get the file again") from None
