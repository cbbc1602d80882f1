"""CIFs: single, in folders, zips and CSVs; parsed on all cores where there are many."""

import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kldm.data.parsing import CHUNK, IDLE
from kldm.data.published import read_rows
from kldm.errors import KldmError
from kldm.reading.rows import Row, opened

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

_NUMBERED = re.compile(r"(\d+)_(\d+)_[^/]*\.cif", re.IGNORECASE)
_NEGATIVE_LENGTH = re.compile(r"^_cell_length_[abc]\s+['\"]?-", re.MULTILINE)
_BLOCK = re.compile(r"^(?=data_)", re.MULTILINE)

StructureOrReason = tuple["Structure | None", str]


def read_cif(path: Path) -> Sequence[Row]:
    """Every data block with atoms of one file; the whole file where it has at most one."""
    with opened(path) as file:
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
    """The ``.cif`` files that lie in a folder itself."""
    files = sorted(
        (one for one in path.iterdir() if _is_cif(one.name) and one.is_file()), key=lambda f: _natural(f.name)
    )
    if not files:
        remedy = "give the file itself, such as samples.jsonl, or DATASET/SPLIT for the split of a data set"
        raise KldmError("the folder holds no .cif files", place=str(path), remedy=remedy)
    return _named([one.name for one in files], [one.read_bytes() for one in files], path)


def read_zip(path: Path) -> Sequence[Row]:
    """The ``.cif`` files of an archive, in whatever folders."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(
                (n for n in archive.namelist() if _is_cif(Path(n).name) and "__MACOSX" not in n), key=_natural
            )
            contents = [archive.read(name) for name in names]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # damaged, odd compression, encrypted
        remedy = "write it again, without a password"
        raise KldmError("not a zip file, or a damaged one", place=str(path), remedy=remedy) from error
    return _named(names, contents, path)


def _named(names: Sequence[str], contents: Sequence[bytes], path: Path) -> Sequence[Row]:
    """Rows of CIF files; a mixture of numbered and other names says nothing about targets."""
    import attrs

    texts = [content.decode("utf-8-sig", errors="replace") for content in contents]
    stems = [Path(name).stem for name in names]
    rows = _rows(texts, stems, [f"{path}, {name}" for name in names], path.name)
    found = [_NUMBERED.fullmatch(Path(name).name) for name in names]
    if not all(found):
        return rows
    pairs = zip(rows, found, strict=True)
    return [attrs.evolve(row, target=int(one[1]), candidate=int(one[2])) for row, one in pairs if one]


def _is_cif(name: str) -> bool:
    return name.lower().endswith(".cif") and not name.startswith(".")


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts 2.cif before 10.cif."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part)


def _rows(texts: Sequence[str], names: Sequence[str], places: Sequence[str], title: str) -> Sequence[Row]:
    parsed = zip(_parsed(texts, title), names, places, strict=True)
    return [Row(place, structure, reason, name=name) for (structure, reason), name, place in parsed]


def _parsed(texts: Sequence[str], title: str) -> list[StructureOrReason]:
    """Every text parsed, in order, with a progress bar on stderr; on all cores where there are many."""
    import joblib
    from tqdm import tqdm

    chunks = [texts[first : first + CHUNK] for first in range(0, len(texts), CHUNK)]
    workers = joblib.cpu_count() if len(chunks) > 8 else 1
    done: list[StructureOrReason] = []
    with (
        tqdm(total=len(texts), desc=f"reading {title}", unit="crystal", delay=2, disable=None) as bar,
        joblib.parallel_config("loky", inner_max_num_threads=1, idle_worker_timeout=IDLE),
    ):
        tasks = (joblib.delayed(_chunk)(chunk) for chunk in chunks)
        results: Iterator[list[StructureOrReason]] = joblib.Parallel(
            n_jobs=workers, return_as="generator", batch_size=1
        )(tasks)
        for result in results:
            done += result
            bar.update(len(result))
    return done


def _chunk(texts: Sequence[str]) -> list[StructureOrReason]:
    return [_structure(text) for text in texts]


def _structure(text: str) -> StructureOrReason:
    from pymatgen.io.cif import CifParser

    if _NEGATIVE_LENGTH.search(text):
        return None, "cell length not positive"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's remarks on what it mends; failures raise
            parser = CifParser.from_str(text, frac_tolerance=0.0)  # no rounding of 0.3333 to 1/3
            return parser.parse_structures(primitive=False, on_error="raise")[0], ""
    except Exception as error:  # the parser raises all sorts; each is one broken CIF
        return None, f"CIF cannot be read: {type(error).__name__}"
