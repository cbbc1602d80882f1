"""One process at a time writes to a folder."""

import errno
import logging
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kldm.errors import KldmError
from kldm.runtime.files import fresh_folder, make_writable, refuse_existing

LOCK = ".lock"
"""The file in a folder that the system locks for the process that writes there. It stays, empty, because another
process may be about to lock it."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

log = logging.getLogger("kldm.runtime")


@contextmanager
def writing_to(folder: Path, *parts: str, is_new: bool | None = None) -> Iterator[None]:
    """Make the folder, and let no other process within such a block write to it.

    The system releases the lock when the process ends, whatever ends it. Temporary files that killed processes have
    left in the folder are removed.

    Args:
        folder: the folder.
        parts: patterns of its subfolders in which this process writes as well.
        is_new: whether the folder was made for this work and is removed if nothing comes of it; by default whether it
            is made here.

    Raises:
        KldmError: another process writes to the folder, or it is not writable.
    """
    is_new = not folder.exists() if is_new is None else is_new
    make_writable(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        remedy = "wait until it has ended, or choose another folder with --out"
        raise KldmError(f"another process is writing to {folder}", remedy=remedy) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise KldmError(f"cannot be written to ({error.strerror})", place=str(folder)) from error
        log.warning("%s: its file system has no locks; let no other process write to it", folder)
    try:
        for place in (folder, *(place for part in parts for place in folder.glob(part))):
            for path in place.glob(".tmp-*"):
                if is_temporary(path):
                    path.unlink(missing_ok=True)
        yield
    finally:
        with suppress(OSError):
            if is_new and [path.name for path in folder.iterdir()] == [LOCK]:  # nothing came of it
                (folder / LOCK).unlink()
                folder.rmdir()
        lock.release()


@contextmanager
def results_folder(out: Path | None, parent: Path, stem: str, names: Collection[str]) -> Iterator[Path]:
    """Yields the folder that results are written to: ``out``, or else a new ``stem-<number>`` in ``parent``.

    It is there, can be written to and is locked before the work begins. If the work fails, a new folder in which
    nothing came about is removed.

    Args:
        names: the files that will be written, which ``out`` must not have yet.

    Raises:
        KldmError: ``out`` has one of these files, another process writes to it, or it cannot be created.
    """
    names = tuple(names)
    if out is not None:
        refuse_existing(out, names)  # before there is a lock in it
    folder = fresh_folder(parent, stem) if out is None else out
    refuse_existing(folder, names)  # before a lock is left in a folder of the user
    with writing_to(folder, is_new=out is None or not out.exists()):
        refuse_existing(folder, names)  # of a process that has ended meanwhile
        yield folder


def check_place(folder: Path) -> None:
    """Check that a folder is one, or could be made, without making it.

    Raises:
        KldmError: a part of its path is a file, or is not writable, or no path at all.
    """
    try:
        os.lstat(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        problem = f"there cannot be a folder of this name ({reason})"
        raise KldmError(problem, place=str(folder), remedy="choose another --out") from None
    there = next((place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()), Path("/"))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        problem = "it is not a folder" if not there.is_dir() else "the folder is not writable"
        raise KldmError(problem, place=str(there), remedy="choose another folder with --out")


def is_temporary(path: Path) -> bool:
    """Whether ``atomic_write`` has made the file."""
    return path.is_file() and re.fullmatch(r"\.tmp-[0-9a-f]{12}-.+", path.name) is not None
