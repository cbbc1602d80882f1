"""The LLL-reduced basis of many lattices at once, and where rounding decides which one it is."""

import math

import numpy as np

from kldm.runtime.numbers import Bool, Float

_MARGIN = 1e-8
"""Margin of coefficients, and relative one of squared lengths: rounding decides between values that differ by less."""


def lll(matrices: Float) -> tuple[Float, Float, Bool]:
    """LLL-reduced bases (delta = 0.75), the integer matrices that make them [L, 3, 3], and where rounding decides."""
    mapping = np.tile(np.eye(3), (len(matrices), 1, 1))
    a, b, c = matrices.transpose(1, 0, 2)
    aa, ab, ac = (np.sum(a * x, axis=-1) for x in (a, b, c))
    b_over = b - (ab / aa)[:, None] * a
    bb, bc = np.sum(b_over * b_over, axis=-1), np.sum(b_over * c, axis=-1)
    c_over = c - (ac / aa)[:, None] * a - (bc / bb)[:, None] * b_over
    cc = np.sum(c_over * c_over, axis=-1)
    coefficients = np.abs(np.stack((ab / aa, ac / aa, bc / bb)))
    done = (coefficients < 0.5 - _MARGIN).all(0)
    done &= (bb > (0.75 - (ab / aa) ** 2) * aa * (1 + _MARGIN)) & (cc > (0.75 - (bc / bb) ** 2) * bb * (1 + _MARGIN))
    unsure = np.zeros(len(matrices), dtype=bool)
    known: dict[bytes, tuple[Float, bool]] = {}
    for index in np.flatnonzero(~done):
        key = matrices[index].tobytes()  # a basis and its negative have the same average cell
        if key not in known:
            known[key] = _lll_single(matrices[index])
        mapping[index], unsure[index] = known[key]
    return mapping @ matrices, mapping, unsure


def _lll_single(matrix: Float) -> tuple[Float, bool]:
    """The integer matrix of one lattice, in plain Python, which is faster for nine numbers."""
    basis: list[list[float]] = matrix.tolist()
    mapping = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    unsure, k = False, 1
    while k < 3:
        for i in range(k - 1, -1, -1):
            u = _gram_schmidt(basis)[0][k][i]
            unsure |= abs(abs(u - math.trunc(u)) - 0.5) < _MARGIN
            if q := round(u):
                basis[k] = [x - q * y for x, y in zip(basis[k], basis[i], strict=True)]
                mapping[k] = [x - q * y for x, y in zip(mapping[k], mapping[i], strict=True)]
        coefficients, norms = _gram_schmidt(basis)
        bound = (0.75 - coefficients[k][k - 1] ** 2) * norms[k - 1]
        unsure |= abs(norms[k] - bound) < _MARGIN * norms[k]
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
