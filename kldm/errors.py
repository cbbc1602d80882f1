"""The exception for mistakes of the user: where it is, what is wrong and what to do; and texts that can be printed."""

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST_REASON = 200
"""Characters of a reason that quotes an error; the rest of its line is cut."""


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
        super().__init__(printable(f"{text}; {remedy}" if remedy else text))


def printable(text: str) -> str:
    """The text on one line, and without what controls a terminal or cannot be encoded.

    White space (a carriage return, a new line) becomes a space; other control characters, the marks that turn the
    direction of writing, and lone surrogates (of a name that is no UTF-8) become question marks.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(" " if c.isspace() else "?" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)


def reason_of(error: BaseException) -> str:
    """An error in its own words, as the reason of one failure: the first line of its message, at most 200 characters.

    The class of the error is named where the message is no sentence, such as that of a ``KeyError``.
    """
    try:
        lines = [line for line in str(error).splitlines() if line.strip()]
    except Exception:  # an error whose own code fails
        lines = []
    kind = type(error).__name__
    if not lines:
        return "out of memory" if isinstance(error, MemoryError) else f"{kind} without a message"
    text = printable(lines[0].strip())
    text = text if " " in text else f"{kind}: {text}"
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.5) -> str | None:
    """A remedy that names the known name most similar to a misspelt one; None if no likeness, 0 to 1, is enough."""
    matches = get_close_matches(name, list(known), n=1, cutoff=likeness)
    return f"did you mean {matches[0]!r}?" if matches else None
