"""One crystal as plain arrays: the checks that it must pass, and the form in which a store keeps it."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kldm.crystals import CrystalStore
from kldm.runtime.numbers import Float, Int

Arrays = tuple[NDArray[np.float32], NDArray[np.float32], Int]
"""One crystal as a store keeps it: fractional [K, 3], lattice [6], atomic numbers [K]."""

FLAT = 1e-3
"""A cell is flat if its volume is below this fraction of a * b * c. Crystals are far from it (Niggli cells: > 0.5)."""

LAST_ELEMENT = 118

LAST_SPECIES = 100
"""Models are built for the atomic numbers from 1 to this one."""

OVERLAP = 0.5
"""Angstrom. Atoms that are closer lie on top of each other: no bond is so short."""

PAIRS = 2**18
"""Distances that are computed at a time."""

FARTHEST_IMAGE = 5
"""Images farther than this many cells are not searched: planes that are so close make no crystal."""


def fault(fractional: Float, lattice: Float, species: Int) -> str:
    """The reason why these numbers are no crystal; empty if they are one. Reasons hold no numbers of the cell, so that
    failures can be counted by reason.

    Args:
        fractional: [K, 3].
        lattice: [6], angstrom and radians.
        species: [K].
    """
    if len(species) == 0:
        return "there are no atoms"
    if reason := cell_fault(lattice):
        return reason
    if not np.isfinite(fractional).all():
        return "the coordinates hold a number that is not finite"
    outside = species[(species < 1) | (species > LAST_ELEMENT)]
    if len(outside):
        return f"no element has the atomic number {outside[0]}"
    return ""


def cell_fault(lattice: Float) -> str:
    """The reason why lengths and angles ([6], angstrom and radians) are those of no cell; empty if they are."""
    if not np.isfinite(lattice).all():
        return "the cell holds a number that is not finite"
    lengths, angles = lattice[:3], lattice[3:]
    if (lengths <= 0).any():
        return "cell length not positive"
    if ((angles <= 0) | (angles >= np.pi)).any():
        return "a cell angle lies outside 0 to 180 degrees"
    cosines = np.cos(angles)
    squared = 1 - (cosines**2).sum() + 2 * cosines.prod()  # (volume / abc)^2
    if squared < FLAT**2:
        return "the cell is flat or impossible"
    with np.errstate(over="ignore"):
        if not np.isfinite(lengths.prod()):
            return "the volume of the cell is not finite"
    return ""


def wrapped(fractional: Float) -> NDArray[np.float32]:
    """Coordinates in [0, 1) as float32. The largest float64 below 1 would round to 1, and becomes 0."""
    values = (fractional % 1.0).astype(np.float32)
    values[values >= 1] = 0
    return values


def arrays(matrix: Float, fractional: Float, species: Int) -> Arrays:
    """A crystal with cell vectors (rows, [3, 3] angstrom) as a store keeps it.

    Raises:
        ValueError: the numbers are no crystal; the message is the reason alone.
    """
    lengths = np.linalg.norm(matrix, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = [matrix[i] @ matrix[j] / (lengths[i] * lengths[j]) for i, j in ((1, 2), (0, 2), (0, 1))]
        lattice = np.concatenate([lengths, np.arccos(np.clip(cosines, -1, 1))])
    if reason := fault(fractional, lattice, species):
        raise ValueError(reason)
    if np.linalg.det(matrix) < 0:
        fractional = -fractional
    return wrapped(fractional), lattice.astype(np.float32), species


def pack(crystals: Iterable[Arrays], ids: Sequence[str]) -> CrystalStore:
    """A store of the crystals in the given order, on the CPU."""
    rows = list(crystals)
    return CrystalStore(
        fractional=torch.from_numpy(np.concatenate([row[0] for row in rows] or [np.empty((0, 3), np.float32)])),
        species=torch.from_numpy(np.concatenate([row[2] for row in rows] or [np.empty(0, np.int64)])),
        lattice=torch.from_numpy(np.stack([row[1] for row in rows]) if rows else np.empty((0, 6), np.float32)),
        sizes=tuple(len(row[2]) for row in rows),
        ids=tuple(ids),
    )


def too_close(matrix: Float, fractional: Float, limit: float = OVERLAP) -> bool:
    """Whether two atoms of a crystal, periodic images included, are closer than ``limit``.

    Args:
        matrix: [3, 3], the cell vectors as rows, in angstrom.
        fractional: [K, 3].
        limit: angstrom.
    """
    reach = _reach(matrix, limit)
    if reach.max() > 1:  # a skewed cell, which has a better basis
        from pymatgen.core.lattice import Lattice

        better = np.asarray(Lattice(matrix).get_lll_reduced_lattice().matrix)
        matrix, fractional = better, fractional @ matrix @ np.linalg.inv(better)
        reach = _reach(matrix, limit)
    axes = [np.arange(-n, n + 1) for n in np.minimum(reach, FARTHEST_IMAGE)]
    shifts = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    count = len(fractional)
    rows = max(1, PAIRS // (count * len(shifts)))
    for first in range(0, count, rows):
        steps = fractional[first : first + rows, None] - fractional
        vectors = ((steps - np.round(steps))[:, :, None] + shifts) @ matrix
        close = (vectors**2).sum(-1) < limit**2  # [rows, count, shifts]
        if close.sum() > len(close):  # more than every atom to itself
            return True
    return False


def _reach(matrix: Float, limit: float) -> Float:
    """The number of cells along each axis in which images may lie within ``limit``; 0 where planes are far apart."""
    return np.asarray(np.floor(limit * np.linalg.norm(np.linalg.inv(matrix), axis=0) + 0.5))
