"""Files that are either the old one or the whole new one, never half of it."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kldm.errors import KldmError


def digest(path: Path) -> str:
    """sha256 of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_writable(folder: Path) -> None:
    """The folder, before the work of hours that shall be written to it.

    Raises:
        KldmError: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"no folder can be made here: {error.strerror or error}"
        raise KldmError(problem, place=str(folder), remedy="choose another folder with --out") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise KldmError("the folder is not writable", place=str(folder), remedy="choose another folder with --out")


def fresh_folder(parent: Path, stem: str) -> Path:
    """A folder name that is not taken: stem-1, stem-2, ..."""
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it replaces ``path`` once the block has ended well.

    If the block raises, or the disk is full, the file that was there before stays as it was and the temporary
    one is removed. Missing folders are made. The temporary name ends in the name of ``path``, so that writers
    that look at the suffix do the same thing as they would with ``path``.

    Raises:
        KldmError: the file cannot be written, with the path and the system's reason.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{secrets.token_hex(6)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None and not _concerns(Path(os.fsdecode(error.filename)), temporary):
            raise  # the block stumbled over another file: not ours to explain
        problem = f"cannot write the file: {error.strerror or error}"
        raise KldmError(problem, place=str(path), remedy="free some space or choose another folder") from error
    finally:
        with suppress(OSError):  # nothing was written where even the folder cannot be reached
            temporary.unlink(missing_ok=True)


def _concerns(named: Path, temporary: Path) -> bool:
    return named == temporary or named == temporary.parent or named in temporary.parents
