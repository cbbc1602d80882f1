"""The exception for mistakes of the user: where it is, what is wrong and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class KldmError(Exception):
    """A user's mistake or a fault of the outside world, told in one sentence.

    The command line prints ``str(error)`` without a traceback and exits with status 1; Python users catch
    it like any exception. Faults of our own are never a ``KldmError``.

    Args:
        problem: what is wrong.
        place: where (a file with its line, a key of a recipe), put before the problem.
        remedy: what to do about it, put after the problem.
    """

    def __init__(self, problem: str, *, place: str | None = None, remedy: str | None = None) -> None:
        self.problem, self.place, self.remedy = problem, place, remedy
        text = f"{place}: {problem}" if place else problem
        super().__init__(f"{text}; {remedy}" if remedy else text)


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.5) -> str | None:
    """A remedy that names the known name most similar to a misspelt one, whatever the case of its letters; None if no
    likeness, 0 to 1, is enough."""
    names = {word.lower(): word for word in known}
    matches = get_close_matches(name.lower(), names, n=1, cutoff=likeness)
    return f"did you mean {names[matches[0]]!r}?" if matches else None
