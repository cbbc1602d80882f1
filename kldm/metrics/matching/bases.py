"""Bases of one lattice that resemble another's, and the average cells in which the sites are compared."""

from typing import Any, cast

import attrs
import numpy as np

from kldm.metrics.matching.lll import lll
from kldm.runtime.numbers import Bool, Float


@attrs.frozen(eq=False)
class Bases:
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

    @classmethod
    def between(cls, first: Float, second: Float, sites: int, ltol: float, angle_tol: float) -> "Bases | None":
        """The bases of ``first`` close to ``second``, both with basis vectors as rows; None if there are none.

        Args:
            first: [3, 3] the candidate's cell, angstrom.
            second: [3, 3] the target's cell, of the same volume.
            sites: number of sites in the cell.
            ltol: tolerance of relative lengths.
            angle_tol: degrees.
        """
        own = _mappings(first, second, ltol, angle_tol)
        if not len(own):
            return None
        mean = (_parameters(own) + _parameters(second[None])) / 2
        average = _matrices(mean)
        reduced, mapping, unsure = lll(average)
        normalization: Float = np.cbrt(sites / np.abs(np.linalg.det(average)))
        return cls(own, average, reduced, cast(Float, np.linalg.inv(mapping)), unsure, normalization)

    def part(self, rows: slice) -> "Bases":
        """The bases in a range of rows."""
        return Bases(*(values[rows] for values in attrs.astuple(self, recurse=False)))


def _mappings(first: Float, second: Float, ltol: float, angle_tol: float) -> Float:
    """``Lattice.find_all_mappings``, its last loop aside, without the bases of another volume; the same order."""
    from pymatgen.core.lattice import Lattice

    lattice, other = Lattice(first), Lattice(second)
    lengths, (alpha, beta, gamma) = other.lengths, other.angles
    radius = max(lengths) * (1 + ltol)
    points: Any = lattice.get_points_in_sphere([[0, 0, 0]], [0, 0, 0], radius, zip_results=False)
    cells, distance = points[0], points[1]
    vectors = cells @ first
    near = [(distance / x < 1 + ltol) & (distance / x > 1 / (1 + ltol)) for x in lengths]
    a, b, c = (vectors[index] for index in near)
    u, v, w = (cells[index] for index in near)
    good = _close(a, b, gamma, angle_tol)[:, :, None] & _close(a, c, beta, angle_tol)[:, None, :]
    i, j, k = np.nonzero(good & _close(b, c, alpha, angle_tol)[None])
    scale = np.stack((u[i], v[j], w[k]), axis=1)
    same = np.abs(np.abs(np.linalg.det(scale)) - 1) < 0.5
    return cast(Float, np.stack((a[i], b[j], c[k]), axis=1)[same])


def _close(first: Float, second: Float, angle: float, tolerance: float) -> Bool:
    """[A, B] whether each vector of the first set and each of the second enclose the given angle, in degrees."""
    lengths = np.sqrt(np.sum(first**2, axis=-1)), np.sqrt(np.sum(second**2, axis=-1))
    cosine = np.inner(first, second) / lengths[0][:, None] / lengths[1]
    near: Bool = np.abs(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))) - angle) <= tolerance
    return near


def _parameters(matrices: Float) -> Float:
    """[L, 6] lengths of the rows, and the angles between them in degrees."""
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
