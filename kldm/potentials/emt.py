"""Effective medium theory: a classical potential for a few metals, for tests and for learning how relaxation works."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from kldm.interfaces import EnergyScale, Json
from kldm.potentials.packages import package_version
from kldm.registry import potential

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator


@potential("emt.v1")
@attrs.frozen(kw_only=True)
class EMT:
    """ASE's effective medium theory (Jacobsen, Stoltze and Norskov 1996): Al, Cu, Ag, Au, Ni, Pd and Pt, with toy
    parameters for H, C, N and O. It takes milliseconds and has no weights. Its energies cannot be compared with those
    of any other potential."""

    @property
    def label(self) -> str:
        return "EMT"

    @property
    def scale(self) -> EnergyScale:
        return "own"

    @property
    def identity(self) -> Mapping[str, Json]:
        return {"name": "emt.v1", "ase": package_version("ase", "emt.v1")}

    def calculator(self) -> "Calculator":
        from ase.calculators.emt import EMT as Calculator

        return Calculator()  # type: ignore[no-untyped-call]
