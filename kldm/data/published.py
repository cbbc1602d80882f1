"""Reading the published CSVs: one crystal a row, as CIF text in the column ``cif``."""

import csv
import gzip
import zlib
from pathlib import Path

from kldm.data.parsing import Parsed, collect, parse_cifs
from kldm.errors import KldmError

LONGEST_FIELD = 16 * 2**20
"""Characters of one CIF text; Python's own limit of 131,072 is too short for large cells."""


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
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    ids: list[str] = []
    cifs: list[str] = []
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if "cif" not in columns:
                found = ", ".join(column or "(unnamed)" for column in columns) or "nothing"
                raise KldmError(f"there is no column 'cif' (found: {found})", place=str(path))
            for number, row in enumerate(reader):
                ids.append(row.get("material_id") or str(number))
                cifs.append(row["cif"] or "")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise KldmError(f"cannot be read ({error})", place=str(path), remedy="get the file again") from None
    return ids, cifs
