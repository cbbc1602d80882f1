"""Flow matching of the lattice from noise that is a plausible cell already."""

from collections.abc import Mapping, Sequence
from math import isfinite, pi
from typing import Literal, Self, cast

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, CrystalStore
from kldm.errors import KldmError
from kldm.interfaces import Codec, Json
from kldm.processes.draws import normal, uniform
from kldm.processes.euclidean_flow import EuclideanFlow
from kldm.registry import process
from kldm.runtime.tables import table

_SMALLEST_SCALE = 0.01  # of a log length: 1 % of the length
_ANGLES = (pi / 3, 2 * pi / 3)  # of Niggli-reduced cells, up to rounding

_Moments = tuple[tuple[float, ...], tuple[float, ...]]


@attrs.frozen(kw_only=True)
class CellPrior:
    """The informed prior of FlowMM (Miller et al., 2024) for the six cell parameters: noise is a cell already.

    Lengths a, b, c are independent and log-normal, with the mean and standard deviation of the log lengths of the
    training structures (maximum likelihood per axis, the deviation at least 0.01), and angles independent and uniform
    from 60 to 120 degrees. The cell is encoded as data are, so any codec of the lattice can be used.

    Args:
        fit: what ``fitted`` measured: ``{"mean": [a, b, c], "std": [a, b, c]}`` of log lengths in angstrom.

    Raises:
        KldmError: ``fit`` is not of that form, or is missing when it is used.
    """

    fit: Mapping[str, Json] | None = None
    _moments: _Moments | None = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_moments", None if self.fit is None else _moments_of(self.fit))

    def fitted(self, train: CrystalStore) -> Self:
        logs = train.lattice[:, :3].cpu().double().log()  # on the host, so that every device fits the same numbers
        std = logs.std(0, correction=0).clamp(min=_SMALLEST_SCALE)
        fit: dict[str, Json] = {"mean": logs.mean(0).tolist(), "std": std.tolist()}
        return attrs.evolve(self, fit=fit)

    def statistics(self) -> Mapping[str, Json]:
        return {} if self.fit is None else {"fit": self.fit}

    def draw(self, like: Crystals, codec: Codec, rng: torch.Generator) -> Tensor:
        """The codec's numbers [B, C] of cells drawn from the informed prior."""
        if self._moments is None:
            raise KldmError(
                "the prior of the lattice is used before it is fitted",
                place="fit",
                remedy="fit it on the training split",
            )
        values, shape = like.lattice, (len(like), 3)
        mean, std = _table(self._moments, values.device, values.dtype)
        logs = mean + std * normal(values, rng, shape)
        angles = _ANGLES[0] + (_ANGLES[1] - _ANGLES[0]) * uniform(values, rng, shape)
        return codec.encode(attrs.evolve(like, lattice=torch.cat([logs.exp(), angles], -1)))


@process("lattice_flow.v1")
def lattice_flow(
    *,
    codec: Codec,
    parameterization: Literal["velocity", "x0"] = "velocity",
    anti_annealing: float = 0.0,
    fit: Mapping[str, Json] | None = None,
) -> EuclideanFlow:
    """``euclidean_flow.v1`` from the informed prior of FlowMM (Miller et al., 2024) for the six cell parameters.

    Args:
        codec: how the cell becomes real numbers.
        parameterization, anti_annealing: see ``EuclideanFlow``.
        fit: see ``CellPrior``.

    Raises:
        KldmError: an option is out of range, or ``fit`` is not of that form or is missing when it is used.
    """
    if codec.channel.per != "crystal":
        raise KldmError("the codec must be one of the lattice, with numbers per crystal", place="codec")
    source = CellPrior(fit=fit)
    return EuclideanFlow(codec=codec, parameterization=parameterization, anti_annealing=anti_annealing, source=source)


def _moments_of(fit: Mapping[str, Json]) -> _Moments:
    """Mean and standard deviation of the log lengths, three numbers each."""
    try:
        mean, std = (tuple(map(float, cast(Sequence[float], fit[name]))) for name in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3 or not min(std) > 0 or not all(map(isfinite, (*mean, *std))):
            raise ValueError("three positive standard deviations belong to three means")
    except (KeyError, TypeError, ValueError) as error:
        raise KldmError(
            "must hold the means and the positive standard deviations of three log lengths",
            place="fit",
            remedy="leave it out to have it measured on the training split",
        ) from error
    return mean, std


@table
def _table(moments: _Moments, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(moments, dtype=dtype, device=device)
