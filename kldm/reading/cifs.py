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

from kldm.data.cifs import StructureError, blocks, read_text
from kldm.data.parsing import parse_texts
from kldm.data.published import LONGEST_FIELD, read_rows
from kldm.errors import KldmError, printable
from kldm.reading.poscars import is_poscar, poscars, read_poscar_text
from kldm.reading.rows import Row
from kldm.runtime.opening import bound, open_bytes, open_text, refuse_irregular, too_large

_NUMBERED = re.compile(r"(\d+)_(\d+)_[^/]*\.cif", re.IGNORECASE)

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
    if len(pieces) > 1 and not poscar:  # blocks have names of their own
        pieces = [attrs.evolve(piece, name=piece.name.split(", ", 1)[1]) for piece in pieces]
    return _of_pieces(pieces, path.name)


def read_table(path: Path) -> Sequence[Row]:
    """The rows of a CSV with a column ``cif`` or ``structure`` of CIFs or of pymatgen's dicts."""
    ids, texts = read_rows(path)
    return read_texts(texts, ids, [f"{path}, row {number}" for number in range(len(texts))], path.name)


def read_texts(texts: Sequence[str], names: Sequence[str], places: Sequence[str], title: str) -> Sequence[Row]:
    """The rows of CIFs, or of pymatgen's dicts as texts, which another file holds at these places."""
    reasons = ["" if text.strip() else "the entry is empty" for text in texts]
    return _of_pieces([_Piece(*parts) for parts in zip(texts, names, places, reasons, strict=True)], title)


def read_folder(path: Path) -> Sequence[Row]:
    """The CIF or POSCAR files of a folder, without those of its subfolders."""
    files = [file for file in path.iterdir() if _is_wanted(file.name) and not file.is_dir()]
    if not files:
        remedy = "give the file itself, such as samples.jsonl, or DATASET/SPLIT for the split of a data set"
        raise KldmError("the folder holds no .cif files", place=str(path), remedy=remedy)
    return _of_entries([_of_file(file) for file in files], path)


def _of_file(path: Path) -> _Entry:
    try:
        refuse_irregular(path)
        with path.open("rb") as file:
            return _Entry(path.name, file.read(LONGEST_FIELD + 1))
    except KldmError as error:
        return _Entry(path.name, reason=error.problem)
    except OSError as error:
        return _Entry(path.name, reason=f"it cannot be read: {error.strerror or error}")


def read_zip(path: Path) -> Sequence[Row]:
    """The CIF or POSCAR files of a zip, in all of its folders."""
    entries: list[_Entry] = []
    unpacked = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not _is_wanted(info.filename):
                    continue
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG):
                    entries.append(_Entry(info.filename, reason=_IRREGULAR))
                    continue
                with archive.open(info) as file:
                    unpacked += _add(entries, info.filename, file, path, unpacked)
    except _DAMAGED as error:
        remedy = "write it again, without a password"
        raise KldmError("not a zip file, or a damaged one", place=str(path), remedy=remedy) from error
    return _of_entries(entries, path)


def read_tar(path: Path) -> Sequence[Row]:
    """The CIF or POSCAR files of a tar, compressed by gzip or not, in all of its folders."""
    entries: list[_Entry] = []
    unpacked = 0
    try:
        with open_bytes(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if not _is_wanted(member.name) or member.isdir():
                    continue
                file = archive.extractfile(member) if member.isfile() else None
                if file is None:
                    entries.append(_Entry(member.name, reason=_IRREGULAR))
                else:
                    unpacked += _add(entries, member.name, file, path, unpacked)
    except _DAMAGED as error:
        raise KldmError("not a tar file, or a damaged one", place=str(path), remedy="write it again") from error
    return _of_entries(entries, path)


_IRREGULAR = "it is a link, a pipe or a device and no regular file"


def _add(entries: list[_Entry], name: str, file: IO[bytes], path: Path, unpacked: int) -> int:
    """Read an entry of an archive, of which so many bytes have been unpacked; the number of its bytes."""
    content = file.read(LONGEST_FIELD + 1)
    if unpacked + len(content) > bound(path):
        raise too_large(path)
    entries.append(_Entry(name, content))
    return len(content)


def _of_entries(entries: Iterable[_Entry], path: Path) -> Sequence[Row]:
    """Rows of CIF files, or of POSCARs, in natural order. Names give targets only if all of them are numbered."""
    entries = sorted(entries, key=lambda entry: _natural(entry.name))
    kinds = [is_poscar(Path(_unzipped_name(entry.name)).name) for entry in entries]
    if len(set(kinds)) > 1:
        problem = f"it holds {kinds.count(False)} CIF files and {kinds.count(True)} POSCAR files"
        raise KldmError(problem, place=str(path), remedy="put them into two folders or archives")
    pieces: list[_Piece] = []
    for entry, poscar in zip(entries, kinds, strict=True):
        place, stem = f"{path}, {entry.name}", _stem(entry.name)
        text, reason = _decoded(entry)
        if not reason and not text.strip():
            reason = "it is empty"
        found = [_Piece("", stem, place, reason)] if reason else _pieces(text, stem, place, poscar)
        note = SEVERAL if len(entries) > 1 and len(found) > 1 else ""
        pieces += [attrs.evolve(piece, note=note) for piece in found]
    rows = _of_pieces(pieces, path.name)
    numbers = [_NUMBERED.fullmatch(Path(entry.name).name) for entry in entries]
    if len(rows) != len(entries) or not all(numbers):
        return rows
    pairs = zip(rows, numbers, strict=True)
    return [attrs.evolve(row, target=int(match[1]), candidate=int(match[2])) for row, match in pairs if match]


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
        parts = [("", part) for part in poscars(text)] if poscar else [(b.name, b.text) for b in blocks(text)]
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


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts 2.cif before 10.cif."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part)


def _of_pieces(pieces: Sequence[_Piece], title: str) -> Sequence[Row]:
    results = parse_texts(_parsed, pieces, f"reading {title}", delay=2)
    return [
        attrs.evolve(row, place=printable(piece.place), name=printable(piece.name), note=piece.note)
        for piece, row in zip(pieces, results, strict=True)
    ]


def _parsed(piece: _Piece) -> Row:
    """The row of a structure, without its place and name."""
    if piece.reason:
        return Row("", None, piece.reason, unread=True)
    try:
        return Row("", read_poscar_text(piece.text) if piece.poscar else read_text(piece.text))
    except StructureError as error:
        return Row("", None, printable(str(error)), species=error.species, unread=error.unread)
    except Exception as error:  # a parser may raise anything; the failure is this structure's alone
        return Row("", None, f"it cannot be read ({type(error).__name__})", unread=True)
