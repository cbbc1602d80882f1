"""What the names of samples say about the rows of a reference that they answer."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence

import attrs

from kldm.errors import KldmError

Place = tuple[int, int]
"""(row of the reference, number among its candidates)."""

_WORD = re.compile(r"[^\W_]+")
_SYMBOL = re.compile(r"(?<![A-Za-z])[A-Z][a-z]?$")
"""What looks like an element before a number, as in the formula C12."""

_NUMBERED_WORD = re.compile(r"(\D{3,})?(\d{1,9})")
"""A number, or a word that ends in one (``seed3``) and is no element with its count."""

_ENDING = re.compile(r"\.(cif|vasp|poscar|json|xyz|extxyz)$", re.IGNORECASE)
_LONGEST_NAME = 200
"""Longer names, or names of many words, are no ids with a number behind them."""

BY_ID = "Rows are placed by their ids, which are those of the reference."

REMEDY = "give every row a 'target', the row of the reference that it answers, counted from 0"


@attrs.frozen
class Placement:
    """Where the samples of a file are put.

    Attributes:
        places: of each sample; None if it answers no row.
        rule: a sentence that says how they were placed.
        notes: sentences that a reader of the results must see; those of names are without the file.
        stated: whether the file says which rows its samples answer.
        weak: whether names might be mere row numbers, so that they count no more than the order of the file.
    """

    places: tuple[Place | None, ...]
    rule: str
    notes: tuple[str, ...] = ()
    stated: bool = False
    weak: bool = False


def are_row_numbers(names: Sequence[str], first: int = 0) -> bool:
    """Whether the names are the numbers of their rows, which say no more than the order."""
    return all(_number(name) == row for row, name in enumerate(names, start=first))


def cleaned(name: str) -> str:
    """A name without blanks around it and without the ending of a file."""
    return _ENDING.sub("", name.strip())


def by_ids(names: Sequence[str], ids: Sequence[str], place: str) -> Placement | None:
    """The places if the names are ids of the reference, alone or with words before or behind: ``mp-66__1``.

    The first whole number behind the ids is the number of the candidate, counted from the smallest of the file.

    Args:
        names: of the samples; may be empty.
        ids: of the rows of the reference.
        place: the file of the samples, for messages.

    Returns:
        None if no name is an id, or ids and names are of the same kind by chance (some numbers).

    Raises:
        KldmError: some names are ids and others are not, an id belongs to several rows, or two samples have one place.
    """
    if are_row_numbers(ids):
        return None
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(map(cleaned, ids)):
        rows[name].append(row)
    found = _found(names, rows)
    if not any(found):  # file systems change the case of letters, and programs pad numbers by zeros
        folded = {_folded(name): name for name in rows}
        hits = _found(list(map(_folded, names)), folded) if len(folded) == len(rows) else []
        found = [hit and (folded[hit[0]], hit[1]) for hit in hits] or found
    known = [hit for hit in found if hit is not None]
    unknown = [name for name, hit in zip(names, found, strict=True) if name and hit is None]
    if not known:
        return None
    by_chance = all(_number(hit[0]) is not None for hit in known)
    if unknown and by_chance and (len(known) < len(unknown) or _may_be_rows(names, len(ids))):
        return None
    if len(known) < len(unknown):
        problem = f"the reference has only {len(known)} of the {len(known) + len(unknown)} ids of its samples"
        raise KldmError(f"{problem}, and lacks {unknown[0]!r}", place=place, remedy="is it the right reference?")
    targets: list[int | None]
    if shared := next((hit[0] for hit in known if len(rows[hit[0]]) > 1), None):
        count, k = len(ids), max(1, len(names) // len(ids))
        orders = [row % count for row in range(len(names))], [row // k % count for row in range(len(names))]
        told = [hit and hit[0] for hit in found]
        agreeing = [order for order in orders if told == [cleaned(ids[row]) for row in order]]
        if not agreeing:
            problem = f"the id {shared!r} of a sample is that of {len(rows[shared])} rows of the reference"
            raise KldmError(problem, place=place, remedy=REMEDY)
        targets = list(agreeing[0])
    else:
        targets = [None if hit is None else rows[hit[0]][0] for hit in found]
    numbers = [None if hit is None else hit[1] for hit in found]
    places, notes = _with_candidates(targets, numbers, names, place)
    if unknown:
        notes.append(
            f"{len(unknown)} of {len(names)} samples have an id that the reference lacks, such as {unknown[0]!r}; "
            "they answer no row."
        )
    if nameless := names.count(""):
        notes.append(f"{nameless} of {len(names)} samples have no id, although others have; they answer no row.")
    weak = are_row_numbers(names) or are_row_numbers(names, 1)
    return Placement(tuple(places), BY_ID, tuple(notes), stated=True, weak=weak)


def by_numbers(
    names: Sequence[str], rows: int, agreement: Callable[[Sequence[Place | None]], int], place: str
) -> Placement | None:
    """The places if every name holds the number of its request (``crystal_17``), or two numbers, the second of which is
    that of the candidate (``17_3``). Numbers that are missing are requests that failed.

    Args:
        names: of the samples.
        rows: number of rows of the reference.
        agreement: how many samples have the composition of the row at the places given. It decides where the numbers
            can be read in several ways, and where it does not, whether all rows have equally many answers.
        place: the file of the samples, for messages.

    Raises:
        KldmError: the numbers can be read in several ways, between which these do not decide.
    """
    columns = _columns(names)
    if not columns or not rows or len(set(zip(*columns, strict=True))) < len(names):
        return None
    numbers = columns[0]
    least, most = min(numbers), max(numbers)
    if len(columns) == 1 and len(names) % rows == 0 and numbers in (list(range(n, n + len(names))) for n in (0, 1)):
        return None  # they say no more than the order
    readings: list[tuple[list[Place | None], str]] = []
    for base in [0] if least == 0 else [1] if most % rows == 0 else [0, 1]:
        told = f"Rows are placed by the numbers in their names, counted from {base}"
        rest = [number - base for number in numbers]
        k = max(rest) // rows + 1
        if k == 1 and len(columns) == 1:
            readings.append(([(number, 0) for number in rest], f"{told}."))
        elif k == 1:
            pairs = list(zip(rest, (n - min(columns[1]) for n in columns[1]), strict=True))
            swapped = [(n - base, c - min(numbers)) for c, n in zip(*columns, strict=True)]
            readings.append((list(pairs), f"{told}; the second is that of the candidate."))
            # Few first numbers and many second ones, as of batches or seeds and the crystals in them.
            few = 2 * len(set(rest)) < min(rows, 2 * len(set(columns[1])))
            few = few or (_is_even(swapped, rows) and not _is_even(pairs, rows))
            if few and {row for row, _ in swapped} <= set(range(rows)):
                readings.append((list(swapped), f"{told}; the first is that of the candidate."))
        elif len(columns) == 1 and 2 * len(names) >= k * rows:
            passes = f"{told}; {k} passes over the reference follow each other."
            readings.append(([(number % rows, number // rows) for number in rest], passes))
            blocks = f"{told}; the {k} candidates of each target stand together."
            readings.append(([(number // k, number % k) for number in rest], blocks))
    if not readings:
        return None
    scores = [(agreement(places), _is_even(places, rows)) for places, _ in readings]
    best = max(scores)
    if scores.count(best) > 1:
        told = " or ".join(rule for (_, rule), score in zip(readings, scores, strict=True) if score == best)
        raise KldmError(f"the numbers in its names can be read in several ways ({told})", place=place, remedy=REMEDY)
    places, rule = readings[scores.index(best)]
    return Placement(tuple(places), rule, stated=True)


def _is_even(places: Sequence[Place | None], rows: int) -> bool:
    counts = Counter(place[0] for place in places if place is not None)
    return len(counts) == rows and len(set(counts.values())) == 1


def unlike_note(names: Sequence[str], ids: Sequence[str]) -> str:
    """A sentence if samples and reference have ids of one kind, such as ``mp-`` and a number, but not one in common."""
    if any(map(are_row_numbers, (names, ids))) or any(are_row_numbers(each, 1) for each in (names, ids)):
        return ""
    kinds = {_kind(name) for name in ids}
    alike = next((name for name in names if name and _kind(name) in kinds), None)
    if alike is None:
        return ""
    return f"the ids of its samples, such as {alike!r}, are not among those of the reference, such as {ids[0]!r}"


def _number(name: str) -> int | None:
    """The whole number that a name consists of."""
    return int(name) if name.isdecimal() and len(name) < 10 else None


def _may_be_rows(names: Sequence[str], rows: int) -> bool:
    columns = _columns(names)
    return bool(columns) and max(columns[0]) <= rows


def _folded(name: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", name).casefold()


def _kind(name: str) -> str:
    return re.sub(r"\d+", "0", name)


def _found(names: Sequence[str], rows: Collection[str]) -> list[tuple[str, int | None] | None]:
    """The id in each name, and the number behind it. In all names the id begins with the same word."""
    words = [list(_WORD.finditer(name)) if len(name) <= _LONGEST_NAME else [] for name in names]
    found: list[tuple[str, int | None] | None] = [(name, None) if name and name in rows else None for name in names]
    whole = [hit[0] for hit in found if hit is not None]
    best = len(whole), len(set(whole))
    for first in range(min(max(map(len, words), default=0), 6)):
        hits = [_from_word(name, of_name, first, rows) for name, of_name in zip(names, words, strict=True)]
        ids = [hit[0] for hit in hits if hit is not None]
        if (len(ids), len(set(ids))) > best:
            found, best = hits, (len(ids), len(set(ids)))
    return found


def _from_word(
    name: str, words: "Sequence[re.Match[str]]", first: int, rows: Collection[str]
) -> tuple[str, int | None] | None:
    for last in range(min(len(words), first + 16) - 1, first - 1, -1):
        part = name[words[first].start() : words[last].end()]
        if part in rows:
            numbers = (_number(word[0]) for word in words[last + 1 :])
            return part, next((number for number in numbers if number is not None), None)
    return None


def _with_candidates(
    targets: Sequence[int | None], numbers: Sequence[int | None], names: Sequence[str], place: str
) -> tuple[list[Place | None], list[str]]:
    """The places of samples whose targets are known, by the numbers in their names or by their order."""
    counts = Counter(target for target in targets if target is not None)
    known = [number for target, number in zip(targets, numbers, strict=True) if target is not None]
    values = sorted({number for number in known if number is not None})
    running = max(counts.values()) == 1 and 1 < len(values) == len(known)
    if values and None not in known and not running:
        # Ranks instead of numbers with large gaps, which are seeds and the like.
        dense = 2 * len(values) > values[-1] - values[0]
        candidates = {value: value - values[0] if dense else rank for rank, value in enumerate(values)}
        places: list[Place | None] = [
            None if target is None or number is None else (target, candidates[number])
            for target, number in zip(targets, numbers, strict=True)
        ]
        seen: dict[Place, str] = {}
        for name, each in zip(names, places, strict=True):
            if each is not None and each in seen:
                problem = f"{name!r} and {seen[each]!r} are the same candidate of one target"
                raise KldmError(problem, place=place, remedy="number the candidates of each id 0, 1, ...")
            if each is not None:
                seen[each] = name
        return places, []
    notes = []
    if running:
        notes.append("The numbers behind the ids are all different, and are not taken for numbers of candidates.")
    if len(set(counts.values())) > 1:
        least, most = min(counts.values()), max(counts.values())
        notes.append(
            f"There are {least} to {most} samples of an id, which are its candidates in the order of the file."
        )
    before: Counter[int] = Counter()
    places = []
    for target in targets:
        places.append(None if target is None else (target, before[target]))
        if target is not None:
            before[target] += 1
    return places, notes


def _columns(names: Sequence[str]) -> list[list[int]]:
    """One or two lists of whole numbers, which stand at the same place of every name and differ; none without them.

    What stands before them must be the same in all names: ``NaCl_0, KCl_0`` are numbers of candidates.
    """
    tail = [re.fullmatch(r"(\D*)(\d{1,9})", name) for name in names]
    prefixes = {match[1] for match in tail if match}
    if all(tail) and len(prefixes) == 1 and not _SYMBOL.search(prefixes.pop()):
        return [[int(match[2]) for match in tail if match]]
    words = [_WORD.findall(name) for name in names]
    columns: list[list[int]] = []
    for column in zip(*words, strict=False):
        differ = len(set(column)) > 1 or len(names) == 1
        parts = [match for word in column if (match := _NUMBERED_WORD.fullmatch(word))]
        if differ and len(parts) == len(names) and len({match[1] for match in parts}) == 1:
            columns.append([int(match[2]) for match in parts])
        elif differ and not columns:
            return []
    return columns if len(columns) <= 2 else []
