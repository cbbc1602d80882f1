"""A split of one file into train, val and test that is the same on every machine and keeps compositions apart."""

import hashlib
from collections import Counter

from kldm.crystals import CrystalStore
from kldm.data.formulas import reduced_counts

HELD_OUT = 0.1
"""The fraction of the crystals in ``val``, and that in ``test``; the rest is ``train``."""


def reduced_compositions(store: CrystalStore) -> list[tuple[tuple[int, int], ...]]:
    """The reduced composition of each crystal: pairs (atomic number, count), sorted; counts have no common divisor."""
    species: list[int] = store.species.tolist()
    result = []
    first = 0
    for size in store.sizes:
        counts = Counter(species[first : first + size])
        first += size
        result.append(tuple(sorted(reduced_counts(counts).items())))
    return result


def split_rows(store: CrystalStore) -> dict[str, list[int]]:
    """Rows of ``train``, ``val`` and ``test``, 80 / 10 / 10, in the store's order.

    Crystals of one reduced composition go to one split, so that a held-out composition was never trained on.
    Compositions are sorted by a hash of their numbers, so that the split depends neither on the order of the crystals
    nor on the platform.
    """
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for row, composition in enumerate(reduced_compositions(store)):
        groups.setdefault(composition, []).append(row)
    most = round(HELD_OUT * len(store))
    rows: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for composition in sorted(groups, key=lambda numbers: hashlib.sha256(repr(numbers).encode()).digest()):
        group = groups[composition]
        name = next((name for name in ("test", "val") if len(rows[name]) + len(group) <= most), "train")
        rows[name] += group
    return {name: sorted(members) for name, members in rows.items()}
