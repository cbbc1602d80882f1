"""METRe: references matched by any generated structure of their composition, not only by the answer to them."""

from collections.abc import Mapping, Sequence

import numpy as np

from kldm.metrics.matching.matcher import Matcher
from kldm.metrics.matching.pairs import Examined, PairResult, Proportions, match


def smallest_rms(
    matcher: Matcher,
    reference: Sequence[Examined],
    candidates: Sequence[Examined],
    generated: Mapping[int, int],
    known: Mapping[tuple[int, int], PairResult],
    *,
    workers: int,
    time_limit: float | None,
) -> tuple[dict[int, float], int]:
    """Match every reference with all generated structures of its reduced composition (arXiv 2509.12178).

    Args:
        matcher: compares the pairs.
        reference: all references.
        candidates: all candidates.
        generated: the index of the candidate that was generated for each target.
        known: the results of pairs that were compared before, by target and index.
        workers: processes.
        time_limit: seconds per pair.

    Returns:
        The smallest rms of each reference that is matched, and the number of new pairs that could not be compared.
    """
    by_formula: dict[Proportions, list[int]] = {}
    for index in generated.values():
        formula = candidates[index].formula
        if formula is not None:
            by_formula.setdefault(formula, []).append(index)
    pairs = {
        target: by_formula[structure.formula]
        for target, structure in enumerate(reference)
        if structure.formula in by_formula
    }
    missing = {target: [i for i in indices if (target, i) not in known] for target, indices in pairs.items()}
    new = match(matcher, reference, candidates, missing, workers=workers, time_limit=time_limit)
    results = {**known, **new}
    smallest: dict[int, float] = {}
    for target, indices in pairs.items():
        matched = [
            result.rms for index in indices if (result := results.get((target, index))) and result.rms is not None
        ]
        if matched:
            smallest[target] = min(matched)
    return smallest, sum(bool(result.reason) for result in new.values())


def count_repeated(reference: Sequence[Examined]) -> int:
    """How many references have the reduced cell of an earlier one, rounded to a thousandth. The same crystal in another
    cell or with another origin is not noticed."""
    seen: set[object] = set()
    count = 0
    for structure in reference:
        if (cell := structure.cell) is not None:
            positions = np.round(cell.fractional % 1, 3) % 1
            key = (cell.species, np.round(cell.matrix, 3).tobytes(), (positions + 0.0).tobytes())
            count += key in seen
            seen.add(key)
    return count
