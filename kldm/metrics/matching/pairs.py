"""Candidates against targets: every cell is examined and reduced once, then the chosen pairs are matched."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import attrs

from kldm.data.formulas import reduced_counts
from kldm.errors import reason_of
from kldm.metrics.matching.matcher import Matcher
from kldm.metrics.matching.reduction import ReducedCell
from kldm.metrics.structure import structural_validity
from kldm.runtime.pool import Failure, parallel_map

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

Proportions = tuple[tuple[int, float], ...]
"""(atomic number, count over the greatest common divisor) of every element."""


@attrs.frozen(eq=False)
class Examined:
    """A structure, ready for the matcher.

    Attributes:
        invalid: why it is structurally invalid, or ``""``.
        formula: None if it has none.
        cell: None if the structure is invalid or cannot be reduced.
        fault: why there is no cell although the structure is valid.
    """

    invalid: str
    formula: Proportions | None = None
    cell: ReducedCell | None = None
    fault: str = ""


@attrs.frozen
class PairResult:
    """The result for a pair: a match (both numbers), no match (neither), or the reason why it could not be compared."""

    rms: float | None = None
    max_dist: float | None = None
    reason: str = ""


def examine(
    structures: "Sequence[Structure | None]",
    *,
    validity: bool,
    longest_edge: float | None,
    workers: int,
    time_limit: float | None,
) -> tuple[Examined, ...]:
    """Examine and reduce every structure; with ``validity``, those that are structurally invalid get no cell."""
    function = partial(_examine, validity=validity, longest_edge=longest_edge)
    results = parallel_map(function, structures, workers=workers, time_limit=time_limit, description="examine")
    return tuple(Examined("", fault=result.reason) if isinstance(result, Failure) else result for result in results)


def match(
    matcher: Matcher,
    targets: Sequence[Examined],
    candidates: Sequence[Examined],
    chosen: Mapping[int, Sequence[int]],
    *,
    workers: int,
    time_limit: float | None,
    unit: str = "target",
) -> dict[tuple[int, int], PairResult]:
    """Match each target with the candidates chosen for it that have a cell. Both are given by their indices, and the
    results have the keys (target, candidate).

    If the candidates of a target take longer than the time limit, they are matched again one by one, each with the
    limit for itself.
    """
    results: dict[tuple[int, int], PairResult] = {}
    cells: dict[tuple[int, int], ReducedCell] = {}
    for target, indices in chosen.items():
        for index in indices:
            cell = candidates[index].cell
            if cell is None:
                continue
            if targets[target].cell is None:
                results[target, index] = PairResult(reason=f"target cannot be compared: {targets[target].fault}")
            elif candidates[index].formula != targets[target].formula:
                results[target, index] = PairResult(reason="composition differs from the target's")
            else:
                cells[target, index] = cell
    tasks: dict[int, list[tuple[int, int]]] = {}
    for key in cells:
        tasks.setdefault(key[0], []).append(key)
    rounds = [list(tasks.values()), []]
    for keys, again in ((rounds[0], rounds[1]), (rounds[1], None)):
        items = [(targets[task[0][0]].cell, tuple(cells[key] for key in task)) for task in keys]
        answers = parallel_map(
            partial(_match, matcher),
            items,
            workers=workers,
            time_limit=time_limit,
            description="match",
            unit=unit if again is not None else "pair",
        )
        for task, answer in zip(keys, answers, strict=True):
            if not isinstance(answer, Failure):
                results |= dict(zip(task, answer, strict=True))
            elif again is not None:
                again.extend([key] for key in task)
            else:
                results[task[0]] = PairResult(reason=f"matcher failed: {answer.reason}")
    return results


def proportions(structure: "Structure") -> Proportions:
    """Counts by atomic number over their greatest common divisor; fractions if they are not whole."""
    amounts = {element.Z: float(n) for element, n in structure.composition.element_composition.items()}
    if all(amount == round(amount) for amount in amounts.values()):
        return tuple(sorted(reduced_counts({number: round(amount) for number, amount in amounts.items()}).items()))
    total = math.fsum(amounts.values())
    return tuple(sorted((number, round(amount / total, 6)) for number, amount in amounts.items()))


def _examine(structure: "Structure | None", *, validity: bool, longest_edge: float | None) -> Examined:
    if structure is None:
        return Examined("no structure", fault="no structure")
    if validity and (invalid := structural_validity(structure, longest_edge=longest_edge)):
        return Examined(invalid, fault=invalid)
    try:
        formula = proportions(structure)
        return Examined("", formula, ReducedCell.of(structure))
    except Exception as error:  # pymatgen raises all sorts on odd cells; each is one structure that matches nothing
        return Examined("", fault=reason_of(error))


def _match(matcher: Matcher, item: tuple[ReducedCell, Sequence[ReducedCell]]) -> list[PairResult]:
    target, candidates = item
    return [_match_pair(matcher, target, candidate) for candidate in candidates]


def _match_pair(matcher: Matcher, target: ReducedCell, candidate: ReducedCell) -> PairResult:
    try:
        distance = matcher.distance(candidate, target)
    except Exception as error:  # of any kind, as above
        return PairResult(reason=f"matcher failed: {reason_of(error)}")
    if distance is None:
        return PairResult()
    if not math.isfinite(distance[0]):
        return PairResult(reason="matcher failed: rms not finite")
    return PairResult(*distance)
