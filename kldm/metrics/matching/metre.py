"""METRe: references met by any generated structure of their composition, not only by the one that answers them."""

from collections.abc import Mapping, Sequence

import attrs
import numpy as np

from kldm.metrics.matching.matcher import Matcher
from kldm.metrics.matching.pairs import Examined, PairResult, Proportions, match


@attrs.frozen
class Everywhere:
    """What was found over all pairs of a composition.

    Attributes:
        rms: the smallest of each reference that is matched.
        notes: what a reader must see.
    """

    rms: Mapping[int, float]
    notes: tuple[str, ...]


def everywhere(
    matcher: Matcher,
    reference: Sequence[Examined],
    candidates: Sequence[Examined],
    generated: Mapping[int, int],
    known: Mapping[tuple[int, int], PairResult],
    *,
    workers: int,
    time_limit: float | None,
) -> Everywhere:
    """The smallest rms of every reference over generated structures of its reduced composition (arXiv 2509.12178).

    Args:
        matcher: of the pairs.
        reference: all references.
        candidates: all candidates.
        generated: the place among the candidates of the one generated for each target.
        known: pairs that are matched already, by target and place.
        workers: processes.
        time_limit: seconds per pair.
    """
    by_formula: dict[Proportions, list[int]] = {}
    for place in generated.values():
        formula = candidates[place].formula
        if formula is not None:
            by_formula.setdefault(formula, []).append(place)
    wanted = {number: by_formula[one.formula] for number, one in enumerate(reference) if one.formula in by_formula}
    missing = {number: [place for place in places if (number, place) not in known] for number, places in wanted.items()}
    found = dict(known) | match(matcher, reference, candidates, missing, workers=workers, time_limit=time_limit)
    rms: dict[int, float] = {}
    for number, places in wanted.items():
        distances = [one.rms for place in places if (one := found.get((number, place))) and one.rms is not None]
        if distances:
            rms[number] = min(distances)
    failed = sum(bool(one.reason) for key, one in found.items() if key not in known)
    notes = (f"{failed} pairs of METRe have no answer and count as no match.",) if failed else ()
    return Everywhere(rms, notes)


def repeated(reference: Sequence[Examined]) -> int:
    """How many references have the reduced cell of an earlier one, to a thousandth; other choices of cell or origin
    are not seen."""
    seen: set[object] = set()
    count = 0
    for one in reference:
        if one.cell is not None:
            places = np.round(one.cell.fractional % 1, 3) % 1
            key = (one.cell.species, np.round(one.cell.matrix, 3).tobytes(), (places + 0.0).tobytes())
            count += key in seen
            seen.add(key)
    return count
