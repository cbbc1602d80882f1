"""Cuts batches into consecutive ranges of crystals, by their numbers of ordered pairs of atoms."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

Range = tuple[int, int]
"""Consecutive crystals of a batch: the index of the first, and one past the last."""


def shares(sizes: Sequence[int], count: int) -> list[Range]:
    """Cut a batch into ``count`` consecutive ranges of crystals with about equal numbers of ordered pairs K (K - 1).

    Each border lies between the two crystals nearest to an equal share, so that a range is off by no more than the
    largest crystal. A range may be empty.
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
    """Cut a range into ranges of at most ``max_pairs`` ordered pairs; a larger crystal gets a range of its own."""
    first, last = within
    if max_pairs is None or first == last:
        return [within]
    ranges, room = [], max_pairs - _cost(sizes[first])
    for index in range(first + 1, last):
        room -= _cost(sizes[index])
        if room < 0:
            ranges.append((first, index))
            first, room = index, max_pairs - _cost(sizes[index])
    return [*ranges, (first, last)]


def _cost(size: int) -> int:
    return max(1, size * (size - 1))
