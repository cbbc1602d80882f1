"""Paths as users write them."""

from pathlib import Path

from kldm.errors import KldmError


def expanded(path: str | Path) -> Path:
    """The path with ``~`` and ``~name`` replaced by a home. Raises ``KldmError`` if there is none, or for no path."""
    if "\0" in str(path):
        raise KldmError("holds a zero byte, which no path has", place=repr(str(path)))
    try:
        return Path(path).expanduser()
    except RuntimeError:
        problem = "the system knows no home of this user"
        raise KldmError(problem, place=str(path), remedy="write the whole path") from None
