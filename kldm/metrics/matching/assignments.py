"""Which site of one crystal is assigned to which of another, for many bases and translations at once."""

import attrs
import numpy as np

from kldm.metrics.matching.bases import Bases
from kldm.metrics.matching.images import MARGIN, outside, shortest, spread
from kldm.metrics.matching.reduction import ReducedCell
from kldm.runtime.numbers import Bool, Float, Int

FORBIDDEN = 1e20
"""Cost of a pair of sites that may not be assigned to each other."""


@attrs.frozen(eq=False)
class Sites:
    """Both cells' sites, sorted by species, and the Q pairs of one species.

    Attributes:
        mine: [n] order of the candidate's sites.
        theirs: [n] of the target's.
        rows: [Q] site of the target of every pair, in the sorted order.
        columns: [Q] site of the candidate.
        blocks: the pairs of each species: where they start, and how many sites it has.
        start: the target's site that defines translations.
        starts: the candidate's sites that a translation may put there.
    """

    mine: Int
    theirs: Int
    rows: Int
    columns: Int
    blocks: tuple[tuple[slice, int], ...]
    start: int
    starts: Int

    @classmethod
    def of(cls, candidate: ReducedCell, target: ReducedCell) -> "Sites":
        # translations put each of the candidate's sites of the rarest species on the target's first site of it
        rarest = min(target.species, key=lambda species: target.counts[species])
        rows, columns, blocks, pairs, done = [], [], [], 0, 0
        starts = np.zeros(0, dtype=np.int64)
        for species, size in target.counts.items():
            block = np.arange(done, done + size)
            if species == rarest:
                starts = block
            blocks.append((slice(pairs, pairs + size * size), size))
            rows.append(np.repeat(block, size))
            columns.append(np.tile(block, size))
            pairs, done = pairs + size * size, done + size
        numbers = {species: number for number, species in enumerate(target.counts)}
        mine, theirs = (
            np.argsort([numbers[species] for species in cell.species], kind="stable") for cell in (candidate, target)
        )
        return cls(mine, theirs, np.concatenate(rows), np.concatenate(columns), tuple(blocks), int(starts[0]), starts)


@attrs.frozen(eq=False)
class Deviations:
    """Deviations for K bases and translations, in pymatgen's order.

    Attributes:
        rms: [K]; infinite if an assignment does not exist, was not needed, or depends on rounding.
        largest: [K] the largest distance.
        doubtful: [K] a lower bound of the rms if rounding decides, otherwise infinite.
    """

    rms: Float
    largest: Float
    doubtful: Float


@attrs.frozen(eq=False)
class Assignments:
    """Site assignments for L bases and T translations of each."""

    sites: Sites
    bases: Bases
    mine: Float
    theirs: Float
    starts: Float
    stol: float

    def distances(self, best: float) -> Deviations | None:
        """The rms of every basis and translation that pymatgen would try, unless it must exceed ``best``."""
        basis, difference = self._possible()
        if not len(basis):
            return None
        cells, size = self.bases.reduced[basis], len(self.theirs)
        scale, unsure = self.bases.normalization[basis], self.bases.unsure[basis]
        shift = difference @ self.bases.inverse[basis]
        shift -= np.round(shift)
        vectors = shift @ cells
        limit = 2 * self.stol / scale
        far = outside(shift, np.sqrt(np.sum(np.linalg.inv(cells) ** 2, axis=-2)) * limit[:, None])
        squares = shortest(vectors, cells, ~far)
        # Nothing closer than the limit is far in any basis, so the nearest sites do not depend on the choice of one.
        choice = self._nearest(np.where(far, FORBIDDEN, squares), limit**2 - MARGIN)
        rms, largest, tied = spread(vectors, cells, choice.pair, scale)
        rms[~choice.solved], largest[~choice.solved] = np.inf, np.inf
        bound = self._bound(basis, choice.smallest.sum(-1), limit**2, len(self.bases.own)) * scale / size
        best = min(best, rms[choice.solved & ~tied & ~(unsure & ~choice.close)].min(initial=np.inf))
        left = np.flatnonzero(~choice.solved & (choice.feasible | unsure) & (bound < best + MARGIN))
        doubt = choice.solved & (tied | unsure & ~choice.close)
        if len(left):
            costs = np.where(far[left], FORBIDDEN, squares[left])
            pair, unique, feasible = self._assigned(costs, choice.pair[left], choice.blocks[left])
            rms[left], largest[left], tied = spread(vectors[left], cells[left], pair, scale[left])
            rms[left[~feasible]] = np.inf
            doubt[left] = feasible & (tied | ~unique) | unsure[left]
        rms[doubt] = np.inf
        return Deviations(rms, largest, np.where(doubt, bound, np.inf))

    def _possible(self) -> tuple[Int, Float]:
        """Bases [K] and differences [K, Q, 3] in their average cells, for which every site of the target has a site of
        the candidate within stol along each axis: pymatgen's first test."""
        difference = (self.mine[:, self.sites.columns] - self.theirs[self.sites.rows])[:, None]
        difference = difference - self.starts[:, :, None]
        difference -= np.round(difference)
        limit = 2 * self.stol / self.bases.normalization
        tolerance = np.sqrt(np.sum(np.linalg.inv(self.bases.average) ** 2, axis=-2)) * limit[:, None]
        within = ~outside(difference, tolerance[:, None])
        possible = np.ones(within.shape[:2], dtype=bool)
        for inside, size in self.sites.blocks:
            possible &= within[..., inside].reshape(*possible.shape, size, size).any(-1).all(-1)
        basis, translation = np.nonzero(possible)
        return basis, difference[basis, translation]

    def _nearest(self, squares: Float, limit: Float) -> "_Nearest":
        count = len(squares)
        pairs, smallest = [], []
        solved = np.ones((count, len(self.sites.blocks)), dtype=bool)
        close = np.ones(count, dtype=bool)
        for number, (inside, size) in enumerate(self.sites.blocks):
            block = squares[:, inside].reshape(count, size, size)
            column, least = block.argmin(-1), block.min(-1)
            taken = np.zeros((count, size), dtype=bool)
            np.put_along_axis(taken, column, values=True, axis=1)
            solved[:, number] = taken.all(-1) & ((block <= least[..., None] + MARGIN).sum((-1, -2)) == size)
            close &= (least < limit[:, None]).all(-1)
            pairs.append(inside.start + np.arange(size) * size + column)
            smallest.append(least)
        least = np.concatenate(smallest, axis=1)
        feasible: Bool = np.all(least < FORBIDDEN, axis=-1)
        return _Nearest(np.concatenate(pairs, axis=1), least, solved, solved.all(-1) & feasible, close, feasible)

    def _bound(self, basis: Int, nearest: Float, limit: Float, count: int) -> Float:
        """[K] with any assignment in its basis, n sum_i |v_i - m|^2 is at least the square of this.

        A site that moves by v_s moves at most (1 - 1/n) of the sum off the mean, so sum_i |v_i - v_s|^2 <= n
        sum_i |v_i - m|^2. Take the site that starts: wherever it is assigned, the left side is at least the sum of
        the nearest squared distances for the translation that puts it there, which is among those of the basis, or
        was refused because a site has none within the limit.
        """
        least = np.full(count, np.inf)
        np.minimum.at(least, basis, np.minimum(nearest, limit))
        return np.sqrt(np.maximum(least[basis] - MARGIN, 0))

    def _assigned(self, squares: Float, nearest: Int, known: Bool) -> tuple[Int, Bool, Bool]:
        """The cheapest assignment [K, n], whether it is the only one [K], and whether there is one at all [K]. For the
        species in ``known`` the nearest sites are already the cheapest assignment."""
        pairs = nearest.copy()
        unique, feasible = np.ones((2, len(squares)), dtype=bool)
        for number, (inside, size) in enumerate(self.sites.blocks):
            low = int(self.sites.rows[inside.start])
            for entry in np.flatnonzero(~known[:, number] & feasible):
                column, single, possible = assignment(squares[entry, inside].reshape(size, size))
                pairs[entry, low : low + size] = inside.start + np.arange(size) * size + column
                unique[entry] &= single
                feasible[entry] &= possible
        return pairs, unique, feasible


@attrs.frozen(eq=False)
class _Nearest:
    """The candidate's nearest site for each site of the target.

    Attributes:
        pair: [K, n] number of the pair of nearest sites.
        smallest: [K, n] its squared length.
        blocks: [K, species] whether no site of a species is nearest twice, so that this is their cheapest
            assignment, and the only one.
        solved: [K] whether this holds for all species.
        close: [K] whether all nearest sites are within the limit.
        feasible: [K] whether every site has a nearest site.
    """

    pair: Int
    smallest: Float
    blocks: Bool
    solved: Bool
    close: Bool
    feasible: Bool


def assignment(cost: Float) -> tuple[Int, bool, bool]:
    """The column of every row that minimises the sum, whether no other choice is as good, and whether it is allowed."""
    from scipy.optimize import linear_sum_assignment

    if len(cost) == 1:
        return np.zeros(1, dtype=np.int64), True, bool(cost[0, 0] < FORBIDDEN)
    rows, columns = linear_sum_assignment(cost)
    if (cost[rows, columns] >= FORBIDDEN).any():
        return columns, True, False
    dearer = cost.copy()
    dearer[rows, columns] += MARGIN
    return columns, not (linear_sum_assignment(dearer)[1] != columns).any(), True
