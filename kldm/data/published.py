"""Reading the published CSVs: one crystal a row, as CIF text in the column ``cif``."""

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import inf, nan
from pathlib import Path

import torch
from torch import Tensor

from kldm.data.parsing import Parsed, collect, parse_cifs
from kldm.errors import KldmError, nearest

LONGEST_FIELD = 16 * 2**20
"""Characters of one CIF text; Python's own limit of 131,072 is too short for large cells."""

_LARGEST = torch.finfo(torch.float32).max


def read_csv(path: Path, workers: int | None = None) -> Parsed:
    """The Niggli-reduced crystals of a ``.csv`` or ``.csv.gz`` file, in the order of its rows.

    Ids are those of the column ``material_id``, or the number of the row from 0 where there is none.

    Args:
        path: the file.
        workers: processes that parse; by default one for each CPU.

    Raises:
        KldmError: where the file is no such CSV, or more than one row in a hundred cannot be read.
    """
    ids, cifs = read_rows(path)
    return collect(parse_cifs(cifs, path.name, workers), ids, str(path))


def read_rows(path: Path) -> tuple[list[str], list[str]]:
    """Ids and CIF texts of a file, unparsed. Raises ``KldmError`` where it is no CSV with a column ``cif``."""
    ids: list[str] = []
    cifs: list[str] = []
    with _rows(path) as reader:
        columns = reader.fieldnames or []
        if "cif" not in columns:
            found = ", ".join(column or "(unnamed)" for column in columns) or "nothing"
            raise KldmError(f"there is no column 'cif' (found: {found})", place=str(path))
        for number, row in enumerate(reader):
            ids.append(row.get("material_id") or str(number))
            cifs.append(row["cif"] or "")
    return ids, cifs


def read_columns(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Columns of numbers of a ``.csv`` or ``.csv.gz`` file, float32 [rows] by name; an empty cell or ``nan`` is NaN.

    Raises:
        KldmError: the file has no such column, or a cell holds something else than a number.
    """
    found: dict[str, list[float]] = {name: [] for name in names}
    with _rows(path) as reader:
        header = list(reader.fieldnames or [])
        for name in names:
            if name not in header:
                raise no_column(name, header, path)
            if header.count(name) > 1:
                raise KldmError(f"{header.count(name)} columns are called {name!r}", place=str(path))
        line = reader.line_num + 1
        for row in reader:
            for name, numbers in found.items():
                numbers.append(_number(row[name], name, f"{path}, row in line {line}"))
            line = reader.line_num + 1
    return {name: torch.tensor(numbers, dtype=torch.float32) for name, numbers in found.items()}


def no_column(name: str, known: Iterable[str], path: Path) -> KldmError:
    """The error that a file does not have a column, with the nearest that it has."""
    names = [column for column in known if column]
    remedy = nearest(name, names) or (f"it has {', '.join(names)}" if names else "it has none")
    return KldmError(f"there is no column {name!r}", place=str(path), remedy=remedy)


def _number(text: str | None, name: str, place: str) -> float:
    """The number of a cell; NaN where it is empty or not there."""
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
    """The rows of a file. Raises ``KldmError`` where it cannot be read, then or later."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield csv.DictReader(file)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise KldmError(f"cannot be read ({error})", place=str(path), remedy="get the file again") from None
