"""One of several answers to the same question, chosen by the answers alone."""

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
    """The same candidates, of each target one marked as selected, by the rule ``CONSENSUS``.

    What a sampler draws most often it believes in most; the candidate nearest to the others is at the middle of the
    largest heap. Of k candidates k (k - 1) / 2 pairs are matched.

    Args:
        candidates: of any number of targets, in any order.
        workers: processes; the result does not depend on it. -1: as many as there are CPU cores.
        time_limit: seconds for one structure or one pair; beyond, it counts as no match. None: no limit.
        matcher: says which structures match; by default with the tolerances of ``match_rate.v1``.

    Raises:
        KldmError: there are no such workers, or no such time.
    """
    check_work(workers, time_limit)
    structures = [one.structure for one in candidates]
    examined = examine(structures, validity=True, longest_edge=None, workers=workers, time_limit=time_limit)
    groups: dict[int, list[int]] = {}
    for place in sorted(range(len(candidates)), key=lambda place: candidates[place].candidate):
        groups.setdefault(candidates[place].target, []).append(place)
    chosen = chosen_places(matcher or Matcher(), structures, examined, groups, workers=workers, time_limit=time_limit)
    return tuple(attrs.evolve(one, selected=place in chosen) for place, one in enumerate(candidates))


def chosen_places(
    matcher: Matcher,
    structures: "Sequence[Structure | None]",
    examined: Sequence[Examined],
    groups: Mapping[int, Sequence[int]],
    *,
    workers: int,
    time_limit: float | None,
) -> frozenset[int]:
    """One place of each group, by the rule ``CONSENSUS``.

    Args:
        matcher: of the pairs.
        structures: at all places.
        examined: the same, after a test of validity.
        groups: places of each target, in the order of their candidate numbers.
        workers: processes.
        time_limit: seconds per pair.
    """
    wanted: dict[int, list[int]] = {}
    for places in groups.values():
        able = [place for place in places if examined[place].cell is not None]
        wanted |= {place: able[number:] for number, place in enumerate(able, start=1)}
    found = match(matcher, examined, examined, wanted, workers=workers, time_limit=time_limit, unit="candidate")
    agreed: dict[int, list[float]] = {place: [] for place in range(len(examined))}
    for pair, answer in found.items():
        if answer.rms is not None:
            for place in pair:
                agreed[place].append(answer.rms)

    def demerits(place: int) -> tuple[bool, bool, int, float]:
        rms, one = agreed[place], examined[place]
        return bool(one.invalid), one.cell is None, -len(rms), statistics.fmean(rms) if rms else math.inf

    chosen = set()
    for places in groups.values():
        of_each = {place: demerits(place) for place in places}
        tied = [place for place in places if of_each[place] == min(of_each.values())]
        able = [place for place in tied if examined[place].cell is not None]
        if len(able) > 1:
            tied = [max(able, key=lambda place: shortest_distance(structures[place]))]
        chosen.add(tied[0])
    return frozenset(chosen)


def shortest_distance(structure: "Structure | None") -> float:
    """The shortest distance between two atoms, or between an atom and its own image: angstrom."""
    assert structure is not None
    edges = np.linalg.norm(HALF_IMAGES @ structure.lattice.matrix, axis=1)
    return float(np.min(structure.distance_matrix[np.triu_indices(len(structure), k=1)], initial=edges.min()))
