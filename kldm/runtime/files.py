"""Writes files atomically: a file is either the old one or the complete new one."""

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from kldm.errors import KldmError
from kldm.runtime.opening import refuse_irregular


def digest(path: Path) -> str:
    """sha256 of the bytes of a file. Raises ``KldmError`` for a pipe or a device, whose bytes may never end."""
    refuse_irregular(path)
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
        raise _uncreatable(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise KldmError("the folder is not writable", place=str(folder), remedy="choose another folder with --out")


def _uncreatable(folder: Path, error: OSError) -> KldmError:
    problem = f"the folder cannot be created: {error.strerror or error}"
    return KldmError(problem, place=str(folder), remedy="choose another folder with --out")


def fresh_folder(parent: Path, stem: str) -> Path:
    """Make the first of ``stem-1``, ``stem-2``, ... that does not exist in ``parent``. Of several programs that ask at
    once, each gets a folder of its own.

    Raises:
        KldmError: the folder cannot be created.
    """
    make_writable(parent)
    for number in count(1):
        folder = parent / f"{stem}-{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise _uncreatable(folder, error) from error
    raise AssertionError("numbers do not end")


def refuse_existing(folder: Path, names: Iterable[str]) -> None:
    """Raises ``KldmError`` if the folder holds one of the files that will be written to it."""
    for name in names:
        if os.path.lexists(folder / name):
            raise KldmError(
                f"the folder has a file {name} already, which is not replaced",
                place=str(folder),
                remedy=f"choose another --out, or remove {name}",
            )


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
