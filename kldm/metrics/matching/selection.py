"""Selection: one of several candidates of a target, chosen by comparing the candidates with each other."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np

from kldm.interfaces import Candidate
from kldm.metrics.matching.images import HALF_IMAGES
from kldm.metrics.matching.matcher import Matcher
from kldm.metrics.matching.pairs import Examined, examine, match
from kldm.runtime.pool import check_work

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

CONSENSUS = (
    "of the structurally valid candidates of a target (of all, where none is valid) the one that most others match; of "
    "several the one of the smallest mean rms to those that it matches, then the one whose shortest distance between "
    "atoms, images included, is the longest, then the first; the reference is not looked at"
)


def consensus(
    candidates: Sequence[Candidate],
    *,
    workers: int = 1,
    time_limit: float | None = 60.0,
    matcher: Matcher | None = None,
) -> tuple[Candidate, ...]:
    """The same candidates, one of each target marked as selected by the rule ``CONSENSUS``.

    A structure that a sampler draws often is one that its model finds probable; the candidate nearest to the others
    lies in the middle of the largest cluster. k candidates take k (k - 1) / 2 comparisons.

    Args:
        candidates: of any number of targets, in any order.
        workers: processes; the result does not depend on it. -1: as many as there are CPU cores.
        time_limit: seconds for one structure or one pair; beyond, it counts as no match. None: no limit.
        matcher: decides which structures match; by default one with the tolerances of ``match_rate.v1``.

    Raises:
        KldmError: ``workers`` or ``time_limit`` is not allowed.
    """
    check_work(workers, time_limit)
    structures = [candidate.structure for candidate in candidates]
    examined = examine(structures, validity=True, longest_edge=None, workers=workers, time_limit=time_limit)
    groups: dict[int, list[int]] = {}
    for index in sorted(range(len(candidates)), key=lambda index: candidates[index].candidate):
        groups.setdefault(candidates[index].target, []).append(index)
    chosen = chosen_indices(matcher or Matcher(), structures, examined, groups, workers=workers, time_limit=time_limit)
    return tuple(attrs.evolve(candidate, selected=index in chosen) for index, candidate in enumerate(candidates))


def chosen_indices(
    matcher: Matcher,
    structures: "Sequence[Structure | None]",
    examined: Sequence[Examined],
    groups: Mapping[int, Sequence[int]],
    *,
    workers: int,
    time_limit: float | None,
) -> frozenset[int]:
    """One index of each group, by the rule ``CONSENSUS``.

    Args:
        matcher: compares the pairs.
        structures: one at each index.
        examined: the same structures, examined with ``validity``.
        groups: the indices of each target, in the order of their candidate numbers.
        workers: processes.
        time_limit: seconds per pair.
    """
    pairs: dict[int, list[int]] = {}
    for indices in groups.values():
        comparable = [index for index in indices if examined[index].cell is not None]
        pairs |= {index: comparable[number:] for number, index in enumerate(comparable, start=1)}
    results = match(matcher, examined, examined, pairs, workers=workers, time_limit=time_limit, unit="candidate")
    matches: dict[int, list[float]] = {index: [] for index in range(len(examined))}
    for pair, result in results.items():
        if result.rms is not None:
            for index in pair:
                matches[index].append(result.rms)

    def demerits(index: int) -> tuple[bool, bool, int, float]:
        rms, structure = matches[index], examined[index]
        return bool(structure.invalid), structure.cell is None, -len(rms), statistics.fmean(rms) if rms else math.inf

    chosen = set()
    for indices in groups.values():
        ranks = {index: demerits(index) for index in indices}
        tied = [index for index in indices if ranks[index] == min(ranks.values())]
        comparable = [index for index in tied if examined[index].cell is not None]
        if len(comparable) > 1:
            tied = [max(comparable, key=lambda index: shortest_distance(structures[index]))]
        chosen.add(tied[0])
    return frozenset(chosen)


def shortest_distance(structure: "Structure | None") -> float:
    """The shortest distance between two atoms, or between an atom and its own image, in angstrom."""
    assert structure is not None
    edges = np.linalg.norm(HALF_IMAGES @ structure.lattice.matrix, axis=1)
    return float(np.min(structure.distance_matrix[np.triu_indices(len(structure), k=1)], initial=edges.min()))
