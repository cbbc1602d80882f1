"""Opens files of strangers: only regular ones, and no more of an archive than a bound, counted while it is unpacked."""

import bz2
import gzip
import io
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TextIO

from kldm.errors import KldmError

LARGEST_UNPACKED = 2**32
"""Most bytes that are unpacked from one compressed file or archive, all of its entries together."""

LEAST_UNPACKED, LARGEST_RATIO = 2**28, 100
"""Beyond the first, no more than the second times the size of a file is unpacked; structures shrink 30-fold at most."""

_UNPACKERS: Mapping[str, Any] = {".gz": gzip.GzipFile, ".tgz": gzip.GzipFile, ".bz2": bz2.BZ2File}

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def refuse_irregular(path: Path) -> None:
    """Raises ``KldmError`` if the path is no regular file: reading a pipe may wait, and a device may never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise KldmError(f"it is {kind} and no regular file", place=str(path), remedy="write it to a file first")


class Bounded(io.RawIOBase):
    """What a compressed file unpacks to, of which no more bytes than ``bound`` says are read.

    Args:
        file: the unpacking file.
        path: the compressed file, for the message.
    """

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path, self._count, self._bound = file, path, 0, bound(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as there are bytes. Raises ``KldmError`` beyond the bound."""
        view = memoryview(buffer).cast("B")
        data = self._file.read(len(view))
        self._count += len(data)
        if self._count > self._bound:
            raise too_large(self._path)
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def bound(path: Path) -> int:
    """How many bytes may be unpacked from a compressed file or archive."""
    return min(LARGEST_UNPACKED, max(LEAST_UNPACKED, LARGEST_RATIO * path.stat().st_size))


def too_large(path: Path) -> KldmError:
    """The error that a file unpacks to more than ``bound`` bytes."""
    problem = f"it unpacks to more than {bound(path) / 2**20:,.0f} MiB"
    return KldmError(problem, place=str(path), remedy="unpack it, or split it, first")


def open_bytes(path: Path) -> IO[bytes]:
    """A regular file, unpacked as it is read if its name ends in ``.gz``, ``.tgz`` or ``.bz2``.

    Raises:
        OSError: it cannot be opened.
        KldmError: it is a pipe or a device; or, as it is read, it unpacks to more bytes than ``bound`` says.
    """
    refuse_irregular(path)
    unpacker = _UNPACKERS.get(path.suffix.lower())
    if unpacker is None:
        return path.open("rb")
    return io.BufferedReader(Bounded(unpacker(path), path), 2**16)


def open_text(path: Path, *, errors: str = "replace", newline: str | None = None) -> TextIO:
    """A text file, compressed or not, as ``open_bytes`` opens it. By default, bytes that are not UTF-8 become
    U+FFFD and spoil their own row alone."""
    file = open_bytes(path)
    start = file.peek(2)[:2] if isinstance(file, io.BufferedReader) else b""
    encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return io.TextIOWrapper(file, encoding=encoding, errors=errors, newline=newline)


def in_place_of(start: bytes | str) -> tuple[str, str] | None:
    """What a file is that begins so and lies in the place of another, with the remedy; None if it may be that other."""
    start = start.encode() if isinstance(start, str) else start
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer", "run git lfs pull where it was cloned"
    if start.lstrip().startswith(b"<"):
        return "a web page", "download the file itself"
    return None
