"""The distance of two crystals as pymatgen's StructureMatcher has it, to the last digit and many times faster."""

import itertools
import math
from typing import TYPE_CHECKING, Any, cast

import attrs
import numpy as np
import numpy.typing as npt

from kldm.metrics.reduction import ReducedCell

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

MARGIN = 1e-8
"""Angstrom or angstrom^2: whatever is decided by less than this is left to pymatgen, whose rounding then decides."""

BATCH = 100_000
"""Pairs of sites looked at together, which bounds the memory to some tens of MB."""

EXACT = 1e-5
"""An rms below this ends pymatgen's search."""

FORBIDDEN = 1e20
"""Cost of a pair of sites that may not be assigned to each other."""

HALF_IMAGES = np.array([n for n in itertools.product((-1, 0, 1), repeat=3) if n > (0, 0, 0)], dtype=float)
"""[13, 3] the neighbouring cells; the other 13 are their negatives."""


@attrs.frozen(kw_only=True)
class Matcher:
    """``StructureMatcher(ltol, stol, angle_tol).get_rms_dist(candidate, target)`` with its other arguments at their
    defaults (primitive cells, scaled volumes, no supercells, no subsets, species compared).

    For every basis of the candidate's lattice close to the target's and every translation that puts a site of the
    rarest species on one of the target, sites are assigned to minimise the sum of squared distances in the average
    cell (V its volume, n sites). With v_i the vectors of the assigned pairs and m their mean,

        rms = min sqrt( sum_i |v_i - m|^2 / n ) / (V/n)^(1/3),

    the minimum being over bases and translations. pymatgen walks through them one by one; here all are handled at
    once, and an assignment problem is solved only where the nearest sites do not already solve it. Where rounding
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
        """The same for cells that are reduced already.

        Raises:
            ValueError, numpy.linalg.LinAlgError: for hopeless cells, as pymatgen does.
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
    """Rounding decides."""


@attrs.frozen(eq=False)
class _Bases:
    """L bases of the candidate's lattice that resemble the target's, each with its average cell.

    Attributes:
        own: [L, 3, 3] rows are basis vectors, angstrom.
        average: [L, 3, 3] the cell whose lengths and angles are the mean of both.
        reduced: [L, 3, 3] its LLL-reduced basis.
        inverse: [L, 3, 3] from fractional coordinates in ``average`` to those in ``reduced``.
        unsure: [L] whether rounding decides which basis is the reduced one.
        normalization: [L] 1 / (V/n)^(1/3).
    """

    own: Float
    average: Float
    reduced: Float
    inverse: Float
    unsure: Bool
    normalization: Float


@attrs.frozen(eq=False)
class _Pair:
    rule: Matcher
    candidate: ReducedCell
    target: ReducedCell
    first: Float
    second: Float

    def by_pymatgen(self) -> tuple[float, float] | None:
        """The same from pymatgen's loop over these very cells."""
        from pymatgen.analysis.structure_matcher import StructureMatcher

        rule = self.rule
        matcher: Any = StructureMatcher(ltol=rule.ltol, stol=rule.stol, angle_tol=rule.angle_tol)
        one, other = self.candidate.structure(self.first), self.target.structure(self.second)
        found = matcher._match(one, other, 1, True, use_rms=True, break_on_match=False)
        return None if found is None else (float(found[0]), float(max(found[1])))

    def best(self) -> tuple[float, float] | None:
        """rms and largest distance of the best basis and translation; the first that is exact, if any is.

        Raises:
            _AmbiguousError: where rounding decides.
        """
        bases = self._bases()
        if bases is None:
            return None
        sites = _Sites.of(self.candidate, self.target)
        mine = (self.candidate.fractional @ self.first)[sites.mine] @ np.linalg.inv(bases.own)
        theirs = self.target.fractional[sites.theirs]
        starts = mine[:, sites.starts] - theirs[sites.start]
        step = max(1, BATCH // (len(sites.starts) * len(sites.rows)))
        best, doubtful = (self.rule.stol, math.inf), math.inf
        for low in range(0, len(mine), step):
            part = slice(low, low + step)
            cells = _Bases(*(values[part] for values in attrs.astuple(bases, recurse=False)))
            found = _Assignments(sites, cells, mine[part], theirs, starts[part], self.rule.stol).distances(best[0])
            if found is None:
                continue
            exact = np.flatnonzero(found.rms < min(EXACT, self.rule.stol))
            if len(exact):  # pymatgen looks no further, nor at what comes later
                first = exact[0]
                doubtful = min(doubtful, found.doubtful[:first].min(initial=math.inf))
                best = float(found.rms[first]), float(found.largest[first])
                if doubtful < EXACT:
                    raise _AmbiguousError
                return best
            doubtful = min(doubtful, found.doubtful.min())
            index = int(found.rms.argmin())
            if found.rms[index] < best[0]:
                best = float(found.rms[index]), float(found.largest[index])
        if doubtful < best[0] + MARGIN or abs(best[0] - self.rule.stol) < MARGIN < best[1] < math.inf:
            raise _AmbiguousError
        return best if best[1] < math.inf else None

    def _bases(self) -> _Bases | None:
        own = self._mappings()
        if not len(own):
            return None
        mean = (_parameters(own) + _parameters(self.second[None])) / 2
        average = _matrices(mean)
        reduced, mapping, unsure = _lll(average)
        normalization: Float = np.cbrt(len(self.candidate.species) / np.abs(np.linalg.det(average)))
        return _Bases(own, average, reduced, cast(Float, np.linalg.inv(mapping)), unsure, normalization)

    def _mappings(self) -> Float:
        """``Lattice.find_all_mappings``, its last loop aside, without the bases of another volume; the same order."""
        from pymatgen.core.lattice import Lattice

        rule, lattice, other = self.rule, Lattice(self.first), Lattice(self.second)
        lengths, (alpha, beta, gamma) = other.lengths, other.angles
        radius = max(lengths) * (1 + rule.ltol)
        found: Any = lattice.get_points_in_sphere([[0, 0, 0]], [0, 0, 0], radius, zip_results=False)
        cells, distance = found[0], found[1]
        places = cells @ self.first
        near = [(distance / x < 1 + rule.ltol) & (distance / x > 1 / (1 + rule.ltol)) for x in lengths]
        a, b, c = (places[index] for index in near)
        u, v, w = (cells[index] for index in near)
        good = _close(a, b, gamma, rule.angle_tol)[:, :, None] & _close(a, c, beta, rule.angle_tol)[:, None, :]
        i, j, k = np.nonzero(good & _close(b, c, alpha, rule.angle_tol)[None])
        scale = np.stack((u[i], v[j], w[k]), axis=1)
        same = np.abs(np.abs(np.linalg.det(scale)) - 1) < 0.5
        return cast(Float, np.stack((a[i], b[j], c[k]), axis=1)[same])


def _close(one: Float, other: Float, angle: float, tolerance: float) -> Bool:
    """[A, B] whether the angle between each two vectors is this one, degrees."""
    lengths = np.sqrt(np.sum(one**2, axis=-1)), np.sqrt(np.sum(other**2, axis=-1))
    cosine = np.inner(one, other) / lengths[0][:, None] / lengths[1]
    return cast(Bool, np.abs(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))) - angle) <= tolerance)


@attrs.frozen(eq=False)
class _Sites:
    """Both cells' sites, sorted by species, and the Q pairs of one species.

    Attributes:
        mine: [n] order of the candidate's sites.
        theirs: [n] of the target's.
        rows: [Q] site of the target of every pair, in the sorted order.
        columns: [Q] site of the candidate.
        blocks: the pairs of each species: where they start, and how many sites it has.
        start: the target's site on which one of the candidate is put.
        starts: those sites of the candidate.
    """

    mine: Int
    theirs: Int
    rows: Int
    columns: Int
    blocks: tuple[tuple[slice, int], ...]
    start: int
    starts: Int

    @classmethod
    def of(cls, candidate: ReducedCell, target: ReducedCell) -> "_Sites":
        # the first of the target's sites with the fewest equals, put on each of those equals in the candidate
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
class _Found:
    """Of K bases and translations, in pymatgen's order.

    Attributes:
        rms: [K]; infinite where no assignment was found, was looked for, or is certain.
        largest: [K] the largest distance.
        doubtful: [K] a lower bound of the rms where rounding decides, elsewhere infinite.
    """

    rms: Float
    largest: Float
    doubtful: Float


@attrs.frozen(eq=False)
class _Assignments:
    """Site assignments for L bases and T translations of each."""

    sites: _Sites
    bases: _Bases
    mine: Float
    theirs: Float
    starts: Float
    stol: float

    def distances(self, best: float) -> _Found | None:
        """The rms of every basis and translation that pymatgen would look at, unless it must exceed ``best``."""
        basis, difference = self._possible()
        if not len(basis):
            return None
        cells, size = self.bases.reduced[basis], len(self.theirs)
        scale, unsure = self.bases.normalization[basis], self.bases.unsure[basis]
        shift = difference @ self.bases.inverse[basis]
        shift -= np.round(shift)
        vectors = shift @ cells
        limit = 2 * self.stol / scale
        far = _outside(shift, np.sqrt(np.sum(np.linalg.inv(cells) ** 2, axis=-2)) * limit[:, None])
        squares = _shortest(vectors, cells, ~far)
        # Nothing closer than the limit is far in any basis, so the nearest sites do not depend on the choice of one.
        choice = self._nearest(np.where(far, FORBIDDEN, squares), limit**2 - MARGIN)
        rms, largest, tied = _spread(vectors, cells, choice.pair, scale)
        rms[~choice.solved], largest[~choice.solved] = np.inf, np.inf
        bound = self._bound(basis, choice.smallest.sum(-1), limit**2, len(self.bases.own)) * scale / size
        best = min(best, rms[choice.solved & ~tied & ~(unsure & ~choice.close)].min(initial=np.inf))
        left = np.flatnonzero(~choice.solved & (choice.feasible | unsure) & (bound < best + MARGIN))
        doubt = choice.solved & (tied | unsure & ~choice.close)
        if len(left):
            costs = np.where(far[left], FORBIDDEN, squares[left])
            pair, unique, feasible = self._assigned(costs, choice.pair[left], choice.blocks[left])
            rms[left], largest[left], tied = _spread(vectors[left], cells[left], pair, scale[left])
            rms[left[~feasible]] = np.inf
            doubt[left] = feasible & (tied | ~unique) | unsure[left]
        rms[doubt] = np.inf
        return _Found(rms, largest, np.where(doubt, bound, np.inf))

    def _possible(self) -> tuple[Int, Float]:
        """Bases [K] and differences [K, Q, 3] in their average cells, where every site of the target has one of the
        candidate within stol along each axis: the first test of pymatgen."""
        difference = (self.mine[:, self.sites.columns] - self.theirs[self.sites.rows])[:, None]
        difference = difference - self.starts[:, :, None]
        difference -= np.round(difference)
        limit = 2 * self.stol / self.bases.normalization
        tolerance = np.sqrt(np.sum(np.linalg.inv(self.bases.average) ** 2, axis=-2)) * limit[:, None]
        within = ~_outside(difference, tolerance[:, None])
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
        feasible = cast(Bool, (least < FORBIDDEN).all(-1))
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
        """The cheapest assignment [K, n], whether it is the only one [K], and whether there is one at all [K]; the
        nearest sites where these are ``known`` to be it."""
        pairs = nearest.copy()
        unique, feasible = np.ones((2, len(squares)), dtype=bool)
        for number, (inside, size) in enumerate(self.sites.blocks):
            low = int(self.sites.rows[inside.start])
            for entry in np.flatnonzero(~known[:, number] & feasible):
                column, single, possible = _assignment(squares[entry, inside].reshape(size, size))
                pairs[entry, low : low + size] = inside.start + np.arange(size) * size + column
                unique[entry] &= single
                feasible[entry] &= possible
        return pairs, unique, feasible


@attrs.frozen(eq=False)
class _Nearest:
    """The nearest site for each of the target.

    Attributes:
        pair: [K, n] number of the pair.
        smallest: [K, n] its squared length.
        blocks: [K, species] whether no site of a species is nearest twice, so that this is their cheapest
            assignment, and the only one.
        solved: [K] whether this holds for all species.
        close: [K] whether all are within the limit.
        feasible: [K] whether every site has one.
    """

    pair: Int
    smallest: Float
    blocks: Bool
    solved: Bool
    close: Bool
    feasible: Bool


def _assignment(cost: Float) -> tuple[Int, bool, bool]:
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


def _outside(shift: Float, tolerance: Float) -> Bool:
    """[K, ..., Q] whether a fractional difference [K, ..., Q, 3] exceeds the tolerance [K, ..., 3] along some axis."""
    x, y, z = (np.abs(shift[..., axis]) > tolerance[..., None, axis] for axis in range(3))
    return x | y | z


def _shortest(vectors: Float, cells: Float, wanted: Bool) -> Float:
    """[K, Q] squared length of the shortest image of the wanted vectors, |v + l|^2 = |v|^2 + |l|^2 + 2 v.l.

    A vector shorter than half the shortest one of the lattice is its own shortest image.
    """
    squares = cast(Float, np.einsum("kqx,kqx->kq", vectors, vectors))
    images = HALF_IMAGES @ cells
    lengths = np.einsum("knx,knx->nk", images, images)
    entry, pair = np.nonzero(wanted & (squares > lengths.min(0)[:, None] / 4.0001))
    x, y, z = vectors[entry, pair].T
    along = images.transpose(2, 1, 0)[:, :, entry]
    change = lengths[:, entry] - 2 * np.abs(along[0] * x + along[1] * y + along[2] * z)
    squares[entry, pair] += np.minimum(change.min(0), 0)
    return squares


def _spread(vectors: Float, cells: Float, pair: Int, scale: Float) -> tuple[Float, Float, Bool]:
    """rms and largest distance from the mean of the assigned pairs' vectors, and whether two images are equally
    short: [K] each."""
    chosen = vectors[np.arange(len(pair))[:, None], pair]
    images = HALF_IMAGES @ cells
    images = np.concatenate((np.zeros((len(cells), 1, 3)), images, -images), axis=1)
    change = 2 * chosen @ images.transpose(0, 2, 1) + np.einsum("knx,knx->kn", images, images)[:, None]
    which = change.argmin(axis=-1)
    tied = ((change <= change.min(axis=-1, keepdims=True) + MARGIN).sum(-1) > 1).any(-1)
    chosen += images[np.arange(len(cells))[:, None], which]
    chosen -= chosen.mean(axis=1, keepdims=True)
    squares = np.einsum("knx,knx->kn", chosen, chosen) * scale[:, None] ** 2
    return np.sqrt(squares.mean(axis=-1)), np.sqrt(squares.max(axis=-1)), tied


def _parameters(matrices: Float) -> Float:
    """[L, 6] lengths and angles in degrees, of rows."""
    lengths = np.sqrt(np.sum(matrices**2, axis=-1))
    after, last = np.roll(matrices, -1, axis=1), np.roll(matrices, -2, axis=1)
    cosine = np.sum(after * last, axis=-1) / (np.roll(lengths, -1, axis=1) * np.roll(lengths, -2, axis=1))
    return np.concatenate((lengths, np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))), axis=1)


def _matrices(parameters: Float) -> Float:
    """[L, 3, 3] ``Lattice.from_parameters``."""
    a, b, c = parameters[:, :3].T
    (cos_alpha, cos_beta, cos_gamma), (sin_alpha, sin_beta, _) = (
        f(np.radians(parameters[:, 3:])).T for f in (np.cos, np.sin)
    )
    gamma = np.arccos(np.clip((cos_alpha * cos_beta - cos_gamma) / (sin_alpha * sin_beta), -1, 1))
    zero = np.zeros_like(a)
    rows = (
        (a * sin_beta, zero, a * cos_beta),
        (-b * sin_alpha * np.cos(gamma), b * sin_alpha * np.sin(gamma), b * cos_alpha),
        (zero, zero, c),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=1)


def _lll(matrices: Float) -> tuple[Float, Float, Bool]:
    """LLL-reduced bases (delta = 0.75), the integer matrices that make them [L, 3, 3], and where rounding decides."""
    mapping = np.tile(np.eye(3), (len(matrices), 1, 1))
    a, b, c = matrices.transpose(1, 0, 2)
    aa, ab, ac = (np.sum(a * x, axis=-1) for x in (a, b, c))
    b_over = b - (ab / aa)[:, None] * a
    bb, bc = np.sum(b_over * b_over, axis=-1), np.sum(b_over * c, axis=-1)
    c_over = c - (ac / aa)[:, None] * a - (bc / bb)[:, None] * b_over
    cc = np.sum(c_over * c_over, axis=-1)
    coefficients = np.abs(np.stack((ab / aa, ac / aa, bc / bb)))
    done = (coefficients < 0.5 - MARGIN).all(0)
    done &= (bb > (0.75 - (ab / aa) ** 2) * aa * (1 + MARGIN)) & (cc > (0.75 - (bc / bb) ** 2) * bb * (1 + MARGIN))
    unsure = np.zeros(len(matrices), dtype=bool)
    known: dict[bytes, tuple[Float, bool]] = {}
    for index in np.flatnonzero(~done):
        key = matrices[index].tobytes()  # a basis and its negative have the same average cell
        if key not in known:
            known[key] = _lll_one(matrices[index])
        mapping[index], unsure[index] = known[key]
    return mapping @ matrices, mapping, unsure


def _lll_one(matrix: Float) -> tuple[Float, bool]:
    """One of them, in plain Python, which is quicker for a single cell of nine numbers."""
    basis: list[list[float]] = matrix.tolist()
    mapping = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    unsure, k = False, 1
    while k < 3:
        for i in range(k - 1, -1, -1):
            u = _gram_schmidt(basis)[0][k][i]
            unsure |= abs(abs(u - math.trunc(u)) - 0.5) < MARGIN
            if q := round(u):
                basis[k] = [x - q * y for x, y in zip(basis[k], basis[i], strict=True)]
                mapping[k] = [x - q * y for x, y in zip(mapping[k], mapping[i], strict=True)]
        coefficients, norms = _gram_schmidt(basis)
        bound = (0.75 - coefficients[k][k - 1] ** 2) * norms[k - 1]
        unsure |= abs(norms[k] - bound) < MARGIN * norms[k]
        if norms[k] >= bound:
            k += 1
        else:
            basis[k - 1], basis[k] = basis[k], basis[k - 1]
            mapping[k - 1], mapping[k] = mapping[k], mapping[k - 1]
            k = max(1, k - 1)
    return np.array(mapping, dtype=float), unsure


def _gram_schmidt(basis: list[list[float]]) -> tuple[list[list[float]], list[float]]:
    """Coefficients u[i][j] for j < i, and squared norms of the orthogonal vectors."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = basis
    aa = ax * ax + ay * ay + az * az
    ba = (ax * bx + ay * by + az * bz) / aa
    ca = (ax * cx + ay * cy + az * cz) / aa
    px, py, pz = bx - ba * ax, by - ba * ay, bz - ba * az
    bb = px * px + py * py + pz * pz
    cb = (px * cx + py * cy + pz * cz) / bb
    rx, ry, rz = cx - ca * ax - cb * px, cy - ca * ay - cb * py, cz - ca * az - cb * pz
    return [[], [ba], [ca, cb]], [aa, bb, rx * rx + ry * ry + rz * rz]
