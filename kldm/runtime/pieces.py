"""A batch cut into consecutive ranges of crystals, by their numbers of ordered pairs of atoms."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

Range = tuple[int, int]
"""Crystals of a batch: the first, and one past the last."""


def shares(sizes: Sequence[int], count: int) -> list[Range]:
    """A batch cut into ``count`` consecutive ranges of crystals with about as many ordered pairs K (K - 1) each.

    Each border is the one nearest to where it should be, so that no range is off by more than the largest crystal; a
    range may be empty.
    """
    if count == 1:
        return [(0, len(sizes))]
    ends = list(accumulate((_cost(size) for size in sizes), initial=0))
    borders = [0]
    for number in range(1, count):
        wanted = ends[-1] * number / count
        after = bisect_left(ends, wanted)
        borders.append(after if after == 0 or ends[after] - wanted < wanted - ends[after - 1] else after - 1)
    return list(zip(borders, [*borders[1:], len(sizes)], strict=True))


def pieces(sizes: Sequence[int], within: Range, max_pairs: int | None) -> list[Range]:
    """A range cut into consecutive ones of at most ``max_pairs`` ordered pairs; of a larger crystal, it alone."""
    first, last = within
    if max_pairs is None or first == last:
        return [within]
    found, room = [], max_pairs - _cost(sizes[first])
    for index in range(first + 1, last):
        room -= _cost(sizes[index])
        if room < 0:
            found.append((first, index))
            first, room = index, max_pairs - _cost(sizes[index])
    return [*found, (first, last)]


def _cost(size: int) -> int:
    return max(1, size * (size - 1))
