"""Codecs of the lattice: the six cell parameters as real numbers that a Euclidean process diffuses."""

from collections.abc import Mapping, Sequence
from math import pi
from typing import Self, cast

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, CrystalStore, Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, Json
from kldm.registry import codec
from kldm.runtime.tables import table

_CUT = 0.025  # share of the structures left out at each end, per axis
_ENOUGH = 20  # structures left after the cut for statistics of their own
_SMALLEST_SCALE = 0.01  # of a log length: 1 % of the length
_ANGLE_SCALE = 0.35
_LONGEST = 10.0  # bound of a decoded log length: exp(10) is 22,026 angstrom
_FLATTEST = 1e-3  # decoded angles keep this distance, in radians, from 0 and pi
_POOLED = "pooled"


@codec("log_tan.v1")
@attrs.frozen(kw_only=True)
class LogTan:
    """Lengths as log(length), angles as tan(angle - pi/2) (section 3.3), so that any six numbers decode to a cell.

    Standardisation subtracts the mean of the log lengths and divides by their standard deviation, over the training
    structures with the same number of atoms without the extreme 2.5 % at both ends of each axis; it divides the
    tangents by 0.35. Numbers of atoms with fewer than 20 structures after the cut, or with none, take the statistics
    pooled over all structures; no standard deviation is below 0.01. Absurd numbers decode to lengths up to 22,026
    angstrom and angles strictly between 0 and pi.

    Args:
        standardise: whether to standardise; ``fitted`` must then be called before use.
        fit: what ``fitted`` measured: ``{"mean": {"5": [a, b, c], "pooled": [...]}, "std": {...}}`` by number of atoms.

    Raises:
        KldmError: ``fit`` is not of that form, or is missing when standardisation uses it.
    """

    standardise: bool = True
    fit: Mapping[str, Json] | None = None
    _rows: tuple[tuple[float, ...], ...] | None = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_rows", None if self.fit is None else _rows_of(self.fit))

    @property
    def channel(self) -> Channel:
        return Channel("lattice", 6, "crystal", "real")

    def encode(self, crystals: Crystals) -> Tensor:
        lengths, angles = crystals.lattice[:, :3], crystals.lattice[:, 3:]
        values = torch.cat([lengths.log(), torch.tan(angles - pi / 2)], -1)
        if not self.standardise:
            return values
        shift, scale = self._moments(crystals.layout, values)
        return (values - shift) / scale

    def decode(self, values: Tensor, into: Crystals) -> Crystals:
        if self.standardise:
            shift, scale = self._moments(into.layout, values)
            values = values * scale + shift
        logs, tangents = values[:, :3], values[:, 3:]
        lengths = logs.clamp(-_LONGEST, _LONGEST).exp()
        angles = (tangents.atan() + pi / 2).clamp(_FLATTEST, pi - _FLATTEST)
        return attrs.evolve(into, lattice=torch.cat([lengths, angles], -1))

    def fitted(self, train: CrystalStore) -> Self:
        if not self.standardise:
            return self
        logs = train.lattice[:, :3].cpu().double().log()  # on the host, so that every device fits the same numbers
        mean, std = {}, {}
        mean[_POOLED], std[_POOLED] = _trimmed(logs)
        sizes = torch.tensor(train.sizes)
        for size in sorted(set(train.sizes)):
            rows = logs[sizes == size]
            if len(rows) - 2 * int(_CUT * len(rows)) >= _ENOUGH:
                mean[str(size)], std[str(size)] = _trimmed(rows)
        fit: dict[str, Json] = {"mean": mean, "std": std}
        return attrs.evolve(self, fit=fit)

    def statistics(self) -> Mapping[str, Json]:
        return {} if self.fit is None else {"fit": self.fit}

    def _moments(self, layout: Layout, like: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale [B, 6]."""
        if self._rows is None:
            raise KldmError(
                "a standardising codec is used before it is fitted",
                place="log_tan",
                remedy="fit it on the training split, or set standardise = false",
            )
        table = _table(self._rows, like.device, like.dtype)
        rows = table[layout.num_atoms.clamp(max=len(table) - 1)]
        return rows[:, :6], rows[:, 6:]


@codec("identity.v1")
@attrs.frozen(kw_only=True)
class Identity:
    """The six cell parameters as they are, in angstrom and radians."""

    @property
    def channel(self) -> Channel:
        return Channel("lattice", 6, "crystal", "real")

    def encode(self, crystals: Crystals) -> Tensor:
        return crystals.lattice

    def decode(self, values: Tensor, into: Crystals) -> Crystals:
        return attrs.evolve(into, lattice=values)


def _trimmed(logs: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each column [M, 3] without its extreme values."""
    cut = int(_CUT * len(logs))
    trimmed = logs.sort(0).values[cut : len(logs) - cut]
    scale = trimmed.std(0, correction=0).clamp(min=_SMALLEST_SCALE)
    return trimmed.mean(0).tolist(), scale.tolist()


def _rows_of(fit: Mapping[str, Json]) -> tuple[tuple[float, ...], ...]:
    """Shift and scale, 12 numbers, for each number of atoms up to one past the largest fitted; the last is pooled."""
    try:
        mean, std = cast(Mapping[str, Sequence[float]], fit["mean"]), cast(Mapping[str, Sequence[float]], fit["std"])
        rows = {
            key: (*map(float, mean[key]), 0.0, 0.0, 0.0, *map(float, std[key]), *[_ANGLE_SCALE] * 3) for key in mean
        }
        counts = [int(key) for key in rows if key != _POOLED]
        pooled = rows[_POOLED]
        if any(len(row) != 12 or min(row[6:]) <= 0 for row in rows.values()):
            raise ValueError("three positive standard deviations belong to three means")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KldmError(
            "must hold means and positive standard deviations of three log lengths by number of atoms and 'pooled'",
            place="fit",
            remedy="leave it out to have it measured on the training split",
        ) from error
    return tuple(rows.get(str(count), pooled) for count in range(max(counts, default=0) + 2))


@table
def _table(rows: tuple[tuple[float, ...], ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(rows, dtype=dtype, device=device)
