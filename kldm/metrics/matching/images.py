"""Vectors between sites, and which of their periodic images is the shortest."""

import itertools
from typing import cast

import numpy as np

from kldm.runtime.numbers import Bool, Float, Int

MARGIN = 1e-8
"""Angstrom or angstrom^2: rounding decides between values that differ by less."""

HALF_IMAGES = np.array([n for n in itertools.product((-1, 0, 1), repeat=3) if n > (0, 0, 0)], dtype=float)
"""[13, 3] the neighbouring cells; the other 13 are their negatives."""


def outside(shift: Float, tolerance: Float) -> Bool:
    """[K, ..., Q] whether a fractional difference [K, ..., Q, 3] exceeds the tolerance [K, ..., 3] along some axis."""
    x, y, z = (np.abs(shift[..., axis]) > tolerance[..., None, axis] for axis in range(3))
    return x | y | z


def shortest(vectors: Float, cells: Float, chosen: Bool) -> Float:
    """[K, Q] squared length of the shortest image of the chosen vectors, |v + l|^2 = |v|^2 + |l|^2 + 2 v.l.

    A vector shorter than half the shortest one of the lattice is its own shortest image.
    """
    squares = cast(Float, np.einsum("kqx,kqx->kq", vectors, vectors))
    images = HALF_IMAGES @ cells
    lengths = np.einsum("knx,knx->nk", images, images)
    entry, pair = np.nonzero(chosen & (squares > lengths.min(0)[:, None] / 4.0001))
    x, y, z = vectors[entry, pair].T
    along = images.transpose(2, 1, 0)[:, :, entry]
    change = lengths[:, entry] - 2 * np.abs(along[0] * x + along[1] * y + along[2] * z)
    squares[entry, pair] += np.minimum(change.min(0), 0)
    return squares


def spread(vectors: Float, cells: Float, pair: Int, scale: Float) -> tuple[Float, Float, Bool]:
    """rms and largest distance of the assigned pairs' vectors from their mean, and whether two images of a vector are
    equally short: [K] each."""
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
