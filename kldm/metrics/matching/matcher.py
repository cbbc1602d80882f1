"""The distance of two crystals by pymatgen's StructureMatcher: the same numbers, many times faster."""

import math
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from kldm.metrics.matching.assignments import Assignments, Sites
from kldm.metrics.matching.bases import Bases
from kldm.metrics.matching.images import MARGIN
from kldm.metrics.matching.reduction import ReducedCell
from kldm.runtime.numbers import Float

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure


BATCH = 100_000
"""Pairs of sites compared together, which bounds the memory to some tens of MB."""

EXACT = 1e-5
"""An rms below this ends pymatgen's search."""


@attrs.frozen(kw_only=True)
class Matcher:
    """``StructureMatcher(ltol, stol, angle_tol).get_rms_dist(candidate, target)`` with its other arguments at their
    defaults (primitive cells, scaled volumes, no supercells, no subsets, species compared).

    For every basis of the candidate's lattice close to the target's and every translation that puts a site of the
    rarest species on one of the target, sites are assigned to minimise the sum of squared distances in the average
    cell (V its volume, n sites). With v_i the vectors of the assigned pairs and m their mean,

        rms = min sqrt( sum_i |v_i - m|^2 / n ) / (V/n)^(1/3),

    where the minimum is over bases and translations. pymatgen tries them one by one; here all are handled at once,
    and an assignment problem is solved only where the nearest sites do not already solve it. Where rounding
    would decide (two images or assignments equally good, a cell with two reduced bases), the pair is handed to
    pymatgen, so that the results are the same.

    Args:
        ltol: tolerance of relative lengths.
        stol: largest rms.
        angle_tol: degrees.
    """

    ltol: float = 0.3
    stol: float = 0.5
    angle_tol: float = 10.0

    def get_rms_dist(self, candidate: "Structure", target: "Structure") -> tuple[float, float] | None:
        """(rms, largest distance of a pair), both over (V/n)^(1/3), or None without a match."""
        return self.distance(ReducedCell.of(candidate), ReducedCell.of(target))

    def distance(self, candidate: ReducedCell, target: ReducedCell) -> tuple[float, float] | None:
        """The same for cells that are already reduced.

        Raises:
            ValueError, numpy.linalg.LinAlgError: a cell is degenerate; pymatgen raises the same.
        """
        if candidate.counts != target.counts:
            return None
        ratio = (target.volume / candidate.volume) ** (1 / 6)
        pair = _Pair(self, candidate, target, candidate.matrix * ratio, target.matrix / ratio)
        try:
            best = pair.best()
        except _AmbiguousError:
            return pair.by_pymatgen()
        return best if best is not None and best[0] < self.stol else None


class _AmbiguousError(Exception):
    """Rounding decides which mapping is the best."""


@attrs.frozen(eq=False)
class _Pair:
    rule: Matcher
    candidate: ReducedCell
    target: ReducedCell
    first: Float
    second: Float

    def by_pymatgen(self) -> tuple[float, float] | None:
        """The same by pymatgen's loop over the same cells."""
        from pymatgen.analysis.structure_matcher import StructureMatcher

        rule = self.rule
        matcher: Any = StructureMatcher(ltol=rule.ltol, stol=rule.stol, angle_tol=rule.angle_tol)
        candidate, target = self.candidate.structure(self.first), self.target.structure(self.second)
        result = matcher._match(candidate, target, 1, True, use_rms=True, break_on_match=False)
        return None if result is None else (float(result[0]), float(max(result[1])))

    def best(self) -> tuple[float, float] | None:
        """rms and largest distance of the best basis and translation; the first that is exact, if any is.

        Raises:
            _AmbiguousError: rounding decides.
        """
        bases = Bases.between(self.first, self.second, len(self.candidate.species), self.rule.ltol, self.rule.angle_tol)
        if bases is None:
            return None
        sites = Sites.of(self.candidate, self.target)
        mine = (self.candidate.fractional @ self.first)[sites.mine] @ np.linalg.inv(bases.own)
        theirs = self.target.fractional[sites.theirs]
        starts = mine[:, sites.starts] - theirs[sites.start]
        step = max(1, BATCH // (len(sites.starts) * len(sites.rows)))
        best, doubtful = (self.rule.stol, math.inf), math.inf
        for low in range(0, len(mine), step):
            part = slice(low, low + step)
            cells = bases.part(part)
            deviations = Assignments(sites, cells, mine[part], theirs, starts[part], self.rule.stol).distances(best[0])
            if deviations is None:
                continue
            exact = np.flatnonzero(deviations.rms < min(EXACT, self.rule.stol))
            if len(exact):  # pymatgen stops at the first
                first = exact[0]
                doubtful = min(doubtful, deviations.doubtful[:first].min(initial=math.inf))
                if doubtful < EXACT:
                    raise _AmbiguousError
                return float(deviations.rms[first]), float(deviations.largest[first])
            doubtful = min(doubtful, deviations.doubtful.min())
            index = int(deviations.rms.argmin())
            if deviations.rms[index] < best[0]:
                best = float(deviations.rms[index]), float(deviations.largest[index])
        if doubtful < best[0] + MARGIN or abs(best[0] - self.rule.stol) < MARGIN < best[1] < math.inf:
            raise _AmbiguousError
        return best if best[1] < math.inf else None
