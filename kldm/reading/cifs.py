"""CIF files: single ones, and those in folders, zips and CSVs. Many are parsed on all cores."""

import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kldm.data.parsing import parse_texts
from kldm.data.published import read_rows
from kldm.errors import KldmError
from kldm.reading.rows import Row, open_text

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

_NUMBERED = re.compile(r"(\d+)_(\d+)_[^/]*\.cif", re.IGNORECASE)
_NEGATIVE_LENGTH = re.compile(r"^_cell_length_[abc]\s+['\"]?-", re.MULTILINE)
_BLOCK = re.compile(r"^(?=data_)", re.MULTILINE)


def read_cif(path: Path) -> Sequence[Row]:
    """Every data block with atoms of a file; the whole file if it has at most one."""
    with open_text(path) as file:
        text = file.read()
    if not text.strip():
        return []
    blocks = [block for block in _BLOCK.split(text) if "_atom_site_" in block]
    texts = blocks if len(blocks) > 1 else [text]
    names = [path.stem if len(texts) == 1 else block.split(maxsplit=1)[0].removeprefix("data_") for block in texts]
    places = [str(path) if len(texts) == 1 else f"{path}, block {number}" for number in range(len(texts))]
    return _rows(texts, names, places, path.name)


def read_table(path: Path) -> Sequence[Row]:
    """The rows of a CSV with a column ``cif``."""
    ids, texts = read_rows(path)
    return _rows(texts, ids, [f"{path}, row {number}" for number in range(len(texts))], path.name)


def read_folder(path: Path) -> Sequence[Row]:
    """The ``.cif`` files of a folder, without those of its subfolders."""
    files = sorted(
        (file for file in path.iterdir() if _is_cif(file.name) and file.is_file()),
        key=lambda file: _natural(file.name),
    )
    if not files:
        remedy = "give the file itself, such as samples.jsonl, or DATASET/SPLIT for the split of a data set"
        raise KldmError("the folder holds no .cif files", place=str(path), remedy=remedy)
    return _named([file.name for file in files], [file.read_bytes() for file in files], path)


def read_zip(path: Path) -> Sequence[Row]:
    """The ``.cif`` files of an archive, in all of its folders."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if _is_cif(Path(name).name) and "__MACOSX" not in name]
            names.sort(key=_natural)
            contents = [archive.read(name) for name in names]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # damaged, odd compression, encrypted
        remedy = "write it again, without a password"
        raise KldmError("not a zip file, or a damaged one", place=str(path), remedy=remedy) from error
    return _named(names, contents, path)


def _named(names: Sequence[str], contents: Sequence[bytes], path: Path) -> Sequence[Row]:
    """Rows of CIF files. Names give targets only if all of them are numbered."""
    import attrs

    texts = [content.decode("utf-8-sig", errors="replace") for content in contents]
    stems = [Path(name).stem for name in names]
    rows = _rows(texts, stems, [f"{path}, {name}" for name in names], path.name)
    numbers = [_NUMBERED.fullmatch(Path(name).name) for name in names]
    if not all(numbers):
        return rows
    pairs = zip(rows, numbers, strict=True)
    return [attrs.evolve(row, target=int(match[1]), candidate=int(match[2])) for row, match in pairs if match]


def _is_cif(name: str) -> bool:
    return name.lower().endswith(".cif") and not name.startswith(".")


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts 2.cif before 10.cif."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part)


def _rows(texts: Sequence[str], names: Sequence[str], places: Sequence[str], title: str) -> Sequence[Row]:
    results = parse_texts(_structure, texts, f"reading {title}", delay=2)
    rows = zip(results, names, places, strict=True)
    return [Row(place, structure, reason, name=name) for (structure, reason), name, place in rows]


def _structure(text: str) -> "tuple[Structure | None, str]":
    from pymatgen.io.cif import CifParser

    if _NEGATIVE_LENGTH.search(text):
        return None, "cell length not positive"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser warns of what it mends; failures raise
            parser = CifParser.from_str(text, frac_tolerance=0.0)  # 0.3333 is not rounded to 1/3
            return parser.parse_structures(primitive=False, on_error="raise")[0], ""
    except Exception as error:  # the parser may raise anything; the failure is this CIF's alone
        return None, f"CIF cannot be read: {type(error).__name__}"
