"""Writes files atomically: a file is either the old one or the complete new one."""

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
    """Create the folder and check that it can be written to, before hours of work whose results go there.

    Raises:
        KldmError: the folder cannot be created or is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"the folder cannot be created: {error.strerror or error}"
        raise KldmError(problem, place=str(folder), remedy="choose another folder with --out") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise KldmError("the folder is not writable", place=str(folder), remedy="choose another folder with --out")


def fresh_folder(parent: Path, stem: str) -> Path:
    """The first of ``stem-1``, ``stem-2``, ... that does not exist in ``parent``."""
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path to write to, which replaces ``path`` when the block ends without an error.

    If the block raises, or the disk is full, an earlier file stays as it was, and the temporary file is removed.
    Missing folders are created. The temporary file lies beside ``path`` and its name ends in that of ``path``, so that
    writers that look at the suffix behave as they would with ``path``.

    Raises:
        KldmError: the file cannot be written; the error has the path and the system's reason.
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
            raise  # the error concerns another file, which the block knows better
        problem = f"cannot write the file: {error.strerror or error}"
        raise KldmError(problem, place=str(path), remedy="free some space or choose another folder") from error
    finally:
        with suppress(OSError):  # if the folder cannot be reached, there is no temporary file either
            temporary.unlink(missing_ok=True)


def _concerns(named: Path, temporary: Path) -> bool:
    return named == temporary or named == temporary.parent or named in temporary.parents
