"""Reads the published CSVs: each row is one crystal, as CIF text in the column ``cif``."""

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import inf, nan
from pathlib import Path

import torch
from torch import Tensor

from kldm.data.parsing import Parsed, collect, parse_cif, parse_texts
from kldm.errors import KldmError, nearest

LONGEST_FIELD = 16 * 2**20
"""Most characters of a CIF text; Python's own limit of 131,072 is too low for large cells."""

_LARGEST = torch.finfo(torch.float32).max


def read_csv(path: Path, workers: int | None = None) -> Parsed:
    """The Niggli-reduced crystals of a ``.csv`` or ``.csv.gz`` file, in the order of its rows.

    Ids are taken from the column ``material_id``; without one they are the numbers of the rows from 0.

    Args:
        path: the file.
        workers: processes that parse; by default one for each CPU.

    Raises:
        KldmError: the file is no such CSV, or more than one row in a hundred cannot be read.
    """
    ids, cifs = read_rows(path)
    return collect(parse_texts(parse_cif, cifs, f"parsing {path.name}", workers=workers), ids, str(path))


def read_rows(path: Path) -> tuple[list[str], list[str]]:
    """Ids and CIF texts of a file, unparsed. Raises ``KldmError`` if it is no CSV with a column ``cif``."""
    ids: list[str] = []
    cifs: list[str] = []
    with _rows(path) as reader:
        columns = reader.fieldnames or []
        if "cif" not in columns:
            header = ", ".join(column or "(unnamed)" for column in columns) or "nothing"
            raise KldmError(f"there is no column 'cif' (found: {header})", place=str(path))
        for number, row in enumerate(reader):
            ids.append(row.get("material_id") or str(number))
            cifs.append(row["cif"] or "")
    return ids, cifs


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
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield csv.DictReader(file)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise KldmError(f"cannot be read ({error})", place=str(path), remedy="get the file again") from None
