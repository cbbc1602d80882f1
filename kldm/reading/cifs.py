"""CIF and POSCAR files: single ones, and those in folders, zips, tars and CSVs. Many are parsed on all cores."""

import gzip
import io
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import attrs

from kldm.data.cifs import blocks, read_text
from kldm.data.parsing import parse_texts
from kldm.data.published import LONGEST_FIELD, read_rows
from kldm.data.structures import ImpossibleError, StructureError
from kldm.errors import KldmError
from kldm.reading.poscars import is_poscar, poscars, read_poscar_text
from kldm.reading.rows import Row
from kldm.runtime.opening import bound, open_bytes, open_text, refuse_irregular, too_large

_WHOLE = re.compile(r"\d{1,9}(?:\.0*)?", re.ASCII)

_NUMBERED = re.compile(r"(\d{1,9})_(\d{1,9})_[^/]*\.cif", re.IGNORECASE)

SEVERAL = "their file, one of many, holds several structures, each of which counts for itself"

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RuntimeError, lzma.LZMAError, struct.error)
"""What is raised for damaged archives, for odd compressions and for encrypted ones."""


@attrs.frozen
class _Piece:
    """The text of one structure, or the reason why there is none; its name and its place."""

    text: str
    name: str
    place: str
    reason: str = ""
    poscar: bool = False
    note: str = ""


@attrs.frozen
class _Entry:
    """A file in a folder or archive: its name, and its content or the reason why it cannot be read."""

    name: str
    content: bytes = b""
    reason: str = ""


def read_cif(path: Path) -> Sequence[Row]:
    """Every data block with atoms of a file."""
    return _single(path, poscar=False)


def read_poscar(path: Path) -> Sequence[Row]:
    """The structure of a POSCAR or CONTCAR file, or all of several that were written one after the other."""
    return _single(path, poscar=True)


def _single(path: Path, poscar: bool) -> Sequence[Row]:
    with open_text(path) as file:
        text = file.read()
    if not text.strip():
        return []
    pieces = _pieces(text, _stem(path.name), str(path), poscar)
    if len(pieces) > 1:  # blocks and POSCARs have names of their own
        pieces = [attrs.evolve(piece, name=piece.name.split(", ", 1)[1]) for piece in pieces]
    return _of_pieces(pieces, path.name)


def read_table(path: Path) -> Sequence[Row]:
    """The rows of a CSV with a column ``cif`` or ``structure`` of CIFs or of pymatgen's dicts."""
    ids, texts, labels = read_rows(path)
    rows = read_texts(texts, ids, [f"{path}, row {number}" for number in range(len(texts))], path.name)
    for name, values in labels.items():
        numbers = [int(float(value)) if _WHOLE.fullmatch(value.strip()) else None for value in values]
        if None in numbers:
            note = f"its {name!r} is no whole number in every row, and is left out"
            rows = [attrs.evolve(row, note=row.note or note) for row in rows]
        else:
            pairs = zip(rows, numbers, strict=True)
            rows = [
                attrs.evolve(row, target=n) if name == "target" else attrs.evolve(row, candidate=n) for row, n in pairs
            ]
    return rows


def read_texts(texts: Sequence[str], names: Sequence[str], places: Sequence[str], title: str) -> Sequence[Row]:
    """The rows of CIFs, or of pymatgen's dicts as texts, which another file holds at these places."""
    reasons = ["" if text.strip() else "the entry is empty" for text in texts]
    return _of_pieces([_Piece(*parts) for parts in zip(texts, names, places, reasons, strict=True)], title)


def read_folder(path: Path) -> Sequence[Row]:
    """The CIF or POSCAR files of a folder and of its subfolders."""
    files = [file for file in path.rglob("*") if _is_wanted(str(file.relative_to(path))) and not file.is_dir()]
    if not files:
        remedy = "give the file itself, such as samples.jsonl, or DATASET/SPLIT for the split of a data set"
        raise KldmError("the folder holds no .cif files", place=str(path), remedy=remedy)
    return _of_entries([_of_file(file, file.relative_to(path).as_posix()) for file in files], path)


def _of_file(path: Path, name: str) -> _Entry:
    try:
        refuse_irregular(path)
        with path.open("rb") as file:
            return _Entry(name, file.read(LONGEST_FIELD + 1))
    except KldmError as error:
        return _Entry(name, reason=error.problem)
    except OSError as error:
        return _Entry(name, reason=f"it cannot be read: {error.strerror or error}")


def read_zip(path: Path) -> Sequence[Row]:
    """The CIF or POSCAR files of a zip, in all of its folders."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = (
                (info.filename, archive.open(info) if stat.S_IFMT(info.external_attr >> 16) in _REGULAR else None)
                for info in archive.infolist()
                if _is_wanted(info.filename)
            )
            entries = _unpacked(members, path)
    except _DAMAGED as error:
        remedy = "write it again, without a password"
        raise KldmError("not a zip file, or a damaged one", place=str(path), remedy=remedy) from error
    return _of_entries(entries, path)


def read_tar(path: Path) -> Sequence[Row]:
    """The CIF or POSCAR files of a tar, compressed by gzip or not, in all of its folders."""
    try:
        with open_bytes(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            members = (
                (member.name, archive.extractfile(member) if member.isfile() else None)
                for member in archive
                if _is_wanted(member.name) and not member.isdir()
            )
            entries = _unpacked(members, path)
    except _DAMAGED as error:
        raise KldmError("not a tar file, or a damaged one", place=str(path), remedy="write it again") from error
    return _of_entries(entries, path)


_REGULAR = (0, stat.S_IFREG)
"""Kinds of regular files in a zip; programs that know no kinds write 0."""


def _unpacked(members: Iterable[tuple[str, IO[bytes] | None]], path: Path) -> list[_Entry]:
    """The contents of an archive's members; None stands for a member that is no regular file."""
    entries: list[_Entry] = []
    size = 0
    for name, file in members:
        if file is None:
            entries.append(_Entry(name, reason="it is a link, a pipe or a device and no regular file"))
            continue
        with file:
            content = file.read(LONGEST_FIELD + 1)
        size += len(content)
        if size > bound(path):
            raise too_large(path)
        entries.append(_Entry(name, content))
    return entries


def _of_entries(entries: Iterable[_Entry], path: Path) -> Sequence[Row]:
    """Rows of CIF files, or of POSCARs, in natural order. Names give targets only if those of all files that can be
    read do."""
    entries = sorted(entries, key=lambda entry: _natural(entry.name))
    kinds = [is_poscar(Path(_unzipped_name(entry.name)).name) for entry in entries]
    if len(set(kinds)) > 1:
        problem = f"it holds {kinds.count(False)} CIF files and {kinds.count(True)} POSCAR files"
        raise KldmError(problem, place=str(path), remedy="put them into two folders or archives")
    stems = [_stem(entry.name) for entry in entries]
    if len(set(stems)) < len(stems):  # the names of their folders tell them apart
        stems = [str(Path(_unzipped_name(entry.name)).with_suffix("")) for entry in entries]
    pieces: list[_Piece] = []
    for entry, stem, poscar in zip(entries, stems, kinds, strict=True):
        place = f"{path}, {entry.name}"
        text, reason = _decoded(entry)
        if not reason and not text.strip():
            reason = "it is empty"
        found = [_Piece("", stem, place, reason)] if reason else _pieces(text, stem, place, poscar)
        note = SEVERAL if len(entries) > 1 and len(found) > 1 else ""
        pieces += [attrs.evolve(piece, note=note) for piece in found]
    rows = _of_pieces(pieces, path.name)
    if len(rows) != len(entries):
        return rows
    pairs = [(row, _NUMBERED.fullmatch(Path(entry.name).name)) for row, entry in zip(rows, entries, strict=True)]
    if not all(match or row.unread for row, match in pairs):
        return rows
    return [attrs.evolve(row, target=int(match[1]), candidate=int(match[2])) if match else row for row, match in pairs]


def _decoded(entry: _Entry) -> tuple[str, str]:
    """The text of a file, unpacked if its name ends in ``.gz``, or the reason why there is none."""
    content, reason = entry.content, entry.reason
    if not reason and entry.name.lower().endswith(".gz"):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(LONGEST_FIELD + 1)
        except (OSError, EOFError, zlib.error) as error:
            reason = f"it is no gzip file, or a damaged one ({error})"
    if len(content) > LONGEST_FIELD:
        reason = f"it is longer than {LONGEST_FIELD // 2**20} MiB"
    if reason:
        return "", reason
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return content.decode(encoding, errors="replace"), ""


def _pieces(text: str, name: str, place: str, poscar: bool) -> list[_Piece]:
    """The structures of a file: the data blocks with atoms of a CIF, or POSCARs one after the other."""
    try:
        parts = (
            [(part.split("\n", 1)[0].strip()[:100], part) for part in poscars(text)]
            if poscar
            else [(b.name, b.text) for b in blocks(text)]
        )
    except StructureError as error:
        return [_Piece("", name, place, str(error))]
    if len(parts) == 1:
        return [_Piece(parts[0][1], name, place, poscar=poscar)]
    return [
        _Piece(part, f"{name}, {block or number}", f"{place}, structure {number}", poscar=poscar)
        for number, (block, part) in enumerate(parts)
    ]


def _unzipped_name(name: str) -> str:
    return name[:-3] if name.lower().endswith(".gz") else name


def _stem(name: str) -> str:
    return Path(_unzipped_name(name)).stem


def _is_wanted(name: str) -> bool:
    """Whether an entry is called like a CIF or POSCAR, and is none of the files that systems hide."""
    base = Path(_unzipped_name(name)).name
    hidden = base.startswith(".") or "__MACOSX" in name or name.endswith("/")
    return not hidden and (base.lower().endswith(".cif") or is_poscar(base))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts 2.cif before 10.cif. The number of digits compares numbers, however many there are."""
    parts = re.split(r"(\d+)", name)
    return [(0, len(part.lstrip("0")), part.lstrip("0")) if part.isdecimal() else (1, 0, part) for part in parts]


def _of_pieces(pieces: Sequence[_Piece], title: str) -> Sequence[Row]:
    results = parse_texts(_parsed, pieces, f"reading {title}", delay=2)
    return [
        attrs.evolve(row, place=piece.place, name=piece.name, note=piece.note)
        for piece, row in zip(pieces, results, strict=True)
    ]


def _parsed(piece: _Piece) -> Row:
    """The row of a structure, without its place and name."""
    if piece.reason:
        return Row("", None, piece.reason, unread=True)
    try:
        return Row("", read_poscar_text(piece.text) if piece.poscar else read_text(piece.text))
    except StructureError as error:
        return Row("", None, str(error), species=error.species, unread=not isinstance(error, ImpossibleError))
    except Exception as error:  # a parser may raise anything; the failure is this structure's alone
        return Row("", None, f"it cannot be read ({type(error).__name__})", unread=True)
