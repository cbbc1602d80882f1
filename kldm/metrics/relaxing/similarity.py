"""Which structures are the same material: matchers of MatterGen's pipeline, uniqueness and novelty."""

import warnings
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import combinations
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, Any, Literal

from kldm.data.formulas import reduced_formula
from kldm.runtime.pool import Failure, parallel_map

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core.structure import Structure

Comparator = Literal["ordered", "disordered"]

TOLERANCES: Mapping[str, Any] = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
"""pymatgen's defaults; Zeni et al. 2025 compare structures with them."""

RADII, ELECTRONEGATIVITIES = 0.3, 1.0
"""Elements may replace each other in an alloy (rules of Hume-Rothery) if their radii differ by at most this share of
their mean, and their electronegativities (Pauling) by at most this."""


def same(structure: "Structure", other: "Structure", matcher: Comparator) -> bool:
    """Whether two structures are the same material. It is not symmetric: only ``structure`` is tried as an alloy.

    ``ordered`` is ``StructureMatcher.fit``. ``disordered`` (the default of MatterGen's pipeline, behind its published
    shares) also finds structures equal that differ only in the order of similar elements: it merges these elements in
    ``structure`` into partially occupied sites, which match every order of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if reduced_formula(structure.composition) != reduced_formula(other.composition):
                return False
            if _matcher().fit(structure, other):
                return True
            merged = _merged(structure) if matcher == "disordered" else None
            return merged is not None and bool(_alloy_matcher().fit(merged, other))
        except Exception:  # a structure that cannot be compared counts as neither unique nor novel
            return True


def unique(
    structures: "Sequence[Structure]", matcher: Comparator, *, workers: int = 1, time_limit: float | None = None
) -> list[bool]:
    """For each structure whether it differs from all unique ones before it. None of a formula is unique if the formula
    with the most structures would take longer than ``time_limit`` seconds for each of them."""
    flags = [False] * len(structures)
    groups = _by_formula(structures)
    items = [[structures[row] for row in rows] for rows in groups.values()]
    compare = partial(_unique, matcher=matcher)
    limit = None if time_limit is None else min(time_limit * max(map(len, items), default=1), TIMEOUT_MAX)
    results = parallel_map(compare, items, workers=workers, time_limit=limit, description="unique", unit="formula")
    for rows, result in zip(groups.values(), results, strict=True):
        for row, flag in zip(rows, [] if isinstance(result, Failure) else result, strict=False):
            flags[row] = flag
    return flags


def novel(
    structures: "Sequence[Structure]",
    known: "Sequence[Structure]",
    matcher: Comparator,
    *,
    workers: int = 1,
    time_limit: float | None = None,
) -> list[bool]:
    """For each structure whether it differs from all known ones. One that takes longer than ``time_limit`` seconds is
    not novel."""
    groups = _by_formula(known)
    formulas = [reduced_formula(structure.composition) for structure in structures]
    items = [(s, [known[row] for row in groups.get(name, ())]) for s, name in zip(structures, formulas, strict=True)]
    differs = partial(_differs, matcher=matcher)
    results = parallel_map(differs, items, workers=workers, time_limit=time_limit, description="novel")
    return [result is True for result in results]


def _by_formula(structures: "Sequence[Structure]") -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for row, structure in enumerate(structures):
        groups.setdefault(reduced_formula(structure.composition), []).append(row)
    return groups


def _unique(group: "Sequence[Structure]", *, matcher: Comparator) -> list[bool]:
    uniques: list[Structure] = []
    flags = []
    for structure in group:
        flags.append(_differs((structure, uniques), matcher=matcher))
        if flags[-1]:
            uniques.append(structure)
    return flags


def _differs(item: "tuple[Structure, Sequence[Structure]]", *, matcher: Comparator) -> bool:
    structure, others = item
    return not any(same(structure, other, matcher) for other in others)


def _merged(structure: "Structure") -> "Structure | None":
    """The structure with similar elements (transitively) as one partially occupied species; None if there are none."""
    amounts = structure.composition.get_el_amt_dict()
    group = {symbol: {symbol} for symbol in amounts}
    for first, second in combinations(amounts, 2):
        if _similar(first, second):
            union = group[first] | group[second]
            for symbol in union:
                group[symbol] = union
    if all(len(members) == 1 for members in group.values()):
        return None
    merged = structure.copy()
    merged.replace_species(
        {
            symbol: {member: amounts[member] / sum(amounts[m] for m in members) for member in sorted(members)}
            for symbol, members in group.items()
        }
    )
    return merged


@cache
def _similar(first: str, second: str) -> bool:
    """Whether two elements may replace each other; not if the radius or electronegativity of one is not known."""
    from pymatgen.core.periodic_table import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        elements = Element(first), Element(second)
        radii = [element.atomic_radius for element in elements]
        negativities = [element.X for element in elements]
    if None in radii:
        return False
    a, b = (float(radius) for radius in radii if radius is not None)
    return (
        abs(a - b) <= RADII * (a + b) / 2 and abs(negativities[0] - negativities[1]) <= ELECTRONEGATIVITIES
    )  # not if NaN


@cache
def _matcher() -> "StructureMatcher":
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(**TOLERANCES)


@cache
def _alloy_matcher() -> "StructureMatcher":
    from pymatgen.analysis.structure_matcher import OrderDisorderElementComparator, StructureMatcher

    comparator = OrderDisorderElementComparator()
    return StructureMatcher(**TOLERANCES, comparator=comparator, attempt_supercell=True, allow_subset=True)
