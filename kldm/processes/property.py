"""A property of the crystal as conditioning, such as its formation energy per atom."""

from collections.abc import Mapping
from typing import Any, Self

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, CrystalStore
from kldm.errors import KldmError
from kldm.interfaces import Channel, Json, Latent, Noised
from kldm.processes.conditioning import Conditioning
from kldm.registry import process


def _is_fit(_instance: Any, attribute: "attrs.Attribute[Any]", fit: Mapping[str, float] | None) -> None:
    if fit is not None and not (fit.keys() == {"mean", "std"} and fit["std"] > 0):
        problem = f"must hold a mean and a std above 0, got {dict(fit)}"
        raise KldmError(problem, place=attribute.name, remedy="leave it out to have it measured on the training split")


@process("property.v1")
@attrs.frozen(kw_only=True)
class Property(Conditioning):
    """A number y per crystal is given: the network reads ((y - mean) / std, 1), and (0, 0) where y is not known.

    The channel, [B, 2], has the name of the column. Mean and standard deviation are those of the known values of the
    training split; if these are all the same, the standard deviation is taken to be 1.

    Args:
        column: the column of the crystals that holds y, see ``Crystals.per_crystal``.
        fit: what ``fitted`` measured: ``{"mean": ..., "std": ...}``.

    Raises:
        KldmError: ``fit`` is not of that form; or, when used, it is missing, the column is not one number per crystal,
            or the training data do not have it. In sampling, the value of targets without the column is not known.
    """

    column: str
    fit: Mapping[str, float] | None = attrs.field(default=None, validator=_is_fit)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def reads(self) -> tuple[Channel, ...]:
        return (Channel(self.column, 2, "crystal", "real"),)

    def known(self, crystals: Crystals) -> Latent:
        if self.fit is None:
            raise KldmError(
                f"the property {self.column!r} is used before it is fitted", remedy="fit it on the training split"
            )
        like = crystals.lattice
        if self.column in crystals.per_crystal:
            values = self._values(crystals).to(like.dtype)
        else:
            values = like.new_full((len(crystals),), torch.nan)
        is_known = ~values.isnan()
        standard = torch.where(is_known, (values - self.fit["mean"]) / self.fit["std"], 0.0)
        return {self.column: torch.stack([standard, is_known.to(like.dtype)], -1)}

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        self._values(clean)
        return super().noise(clean, s, rng)

    def fitted(self, train: CrystalStore) -> Self:
        values = self._values(train).cpu().double()  # on the host, so that every device fits the same numbers
        values = values[~values.isnan()]
        if not len(values):
            raise KldmError(f"no crystal of the training split has a value in the column {self.column!r}")
        alike = bool((values == values[0]).all())  # their mean may differ in the last digit, so that the std is not 0
        std = 1.0 if alike else float(values.std(correction=0))
        return attrs.evolve(self, fit={"mean": float(values.mean()), "std": std})

    def statistics(self) -> Mapping[str, Json]:
        return {} if self.fit is None else {"fit": dict(self.fit)}

    def _values(self, crystals: Crystals | CrystalStore) -> Tensor:
        """The column, [B]."""
        values = crystals.per_crystal.get(self.column)
        if values is None:
            known = ", ".join(crystals.per_crystal) or "none"
            remedy = f"load it with Data(columns=...); their columns per crystal: {known}"
            raise KldmError(f"the crystals have no column {self.column!r} per crystal", remedy=remedy)
        if values.numel() != len(crystals):
            raise KldmError(
                f"the column {self.column!r} has the shape {tuple(values.shape)}, not one number per crystal"
            )
        return values.reshape(-1)
