"""Which structures are the same material: matchers of MatterGen's pipeline, uniqueness and novelty."""

import warnings
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import combinations
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
"""Elements may stand for each other in one alloy if their radii differ by at most this share of their mean, and their
electronegativities (Pauling) by at most this: the rules of Hume-Rothery."""


def same(one: "Structure", other: "Structure", matcher: Comparator) -> bool:
    """Whether two structures of one formula are one material. Not symmetric: alloys are looked for in ``one``.

    ``ordered`` is ``StructureMatcher.fit``. ``disordered`` (the default of MatterGen's pipeline, behind its published
    shares) also takes for equal what differs in the order of similar elements: these are merged in ``one`` into
    partially occupied sites, which every order of them matches.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if reduced_formula(one.composition) != reduced_formula(other.composition):
                return False
            if _matcher().fit(one, other):
                return True
            merged = _merged(one) if matcher == "disordered" else None
            return merged is not None and bool(_alloy_matcher().fit(merged, other))
        except Exception:  # nothing counts as unique or new because it cannot be compared
            return True


def unique(structures: "Sequence[Structure]", matcher: Comparator, *, workers: int = 1) -> list[bool]:
    """For each structure, in their order, whether none of those kept before it is the same."""
    flags = [False] * len(structures)
    groups = _by_formula(structures)
    items = [[structures[row] for row in rows] for rows in groups.values()]
    work = parallel_map(partial(_kept, matcher=matcher), items, workers=workers, description="unique", unit="formula")
    for rows, kept in zip(groups.values(), work, strict=True):
        for row, flag in zip(rows, [] if isinstance(kept, Failure) else kept, strict=False):
            flags[row] = flag
    return flags


def novel(
    structures: "Sequence[Structure]", known: "Sequence[Structure]", matcher: Comparator, *, workers: int = 1
) -> list[bool]:
    """For each structure whether none of the known ones with its reduced formula is the same."""
    groups = _by_formula(known)
    names = [reduced_formula(one.composition) for one in structures]
    items = [(one, [known[row] for row in groups.get(name, ())]) for one, name in zip(structures, names, strict=True)]
    work = parallel_map(partial(_unlike, matcher=matcher), items, workers=workers, description="novel")
    return [flag is True for flag in work]


def _by_formula(structures: "Sequence[Structure]") -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for row, structure in enumerate(structures):
        groups.setdefault(reduced_formula(structure.composition), []).append(row)
    return groups


def _kept(group: "Sequence[Structure]", *, matcher: Comparator) -> list[bool]:
    kept: list[Structure] = []
    flags = []
    for one in group:
        flags.append(not any(same(one, other, matcher) for other in kept))
        if flags[-1]:
            kept.append(one)
    return flags


def _unlike(item: "tuple[Structure, Sequence[Structure]]", *, matcher: Comparator) -> bool:
    one, known = item
    return not any(same(one, other, matcher) for other in known)


def _merged(structure: "Structure") -> "Structure | None":
    """Similar elements as one partially occupied species, transitively; None where no two are similar."""
    amounts = structure.composition.get_el_amt_dict()
    group = {symbol: {symbol} for symbol in amounts}
    for one, other in combinations(amounts, 2):
        if _similar(one, other):
            union = group[one] | group[other]
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
def _similar(one: str, other: str) -> bool:
    """Elements without a radius or an electronegativity are like no other."""
    from pymatgen.core.periodic_table import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        elements = Element(one), Element(other)
        radii = [element.atomic_radius for element in elements]
        negativities = [element.X for element in elements]
    if None in radii:
        return False
    first, second = (float(radius) for radius in radii if radius is not None)
    near = abs(first - second) <= RADII * (first + second) / 2
    return near and abs(negativities[0] - negativities[1]) <= ELECTRONEGATIVITIES  # false of NaN


@cache
def _matcher() -> "StructureMatcher":
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(**TOLERANCES)


@cache
def _alloy_matcher() -> "StructureMatcher":
    from pymatgen.analysis.structure_matcher import OrderDisorderElementComparator, StructureMatcher

    comparator = OrderDisorderElementComparator()
    return StructureMatcher(**TOLERANCES, comparator=comparator, attempt_supercell=True, allow_subset=True)
