"""CHGNet: a pretrained graph network whose weights come with its package."""

import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Literal, cast

import attrs

from kldm.interfaces import EnergyScale, Json
from kldm.potentials.packages import package_version, unusable, usual_device
from kldm.registry import potential

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

_NAME = "chgnet.v1"


@potential(_NAME)
@attrs.frozen(kw_only=True)
class CHGNet:
    """CHGNet (Deng et al., Nature Machine Intelligence 2023), trained on relaxations of the Materials Project.

    It predicts corrected energies (``mp2020``), which are not corrected again.

    Args:
        model: version of the weights; all come with the package. ``r2scan`` was trained on another functional, so
            its energies are only comparable with each other.
        device: cpu, cuda ...; by default a GPU if there is one.
    """

    model: Literal["0.3.0", "0.2.0", "r2scan"] = "0.3.0"
    device: str | None = None

    @property
    def label(self) -> str:
        return f"CHGNet {self.model}"

    @property
    def scale(self) -> EnergyScale:
        return "own" if self.model == "r2scan" else "mp2020"

    @property
    def identity(self) -> Mapping[str, Json]:
        return {"name": _NAME, "model": self.model, "chgnet": package_version("chgnet", _NAME)}

    @property
    def cutoff(self) -> float:
        return 5.0 if self.model == "0.2.0" else 6.0

    def calculator(self) -> "Calculator":
        package_version("chgnet", _NAME)
        device = usual_device(self.device, _NAME)
        with warnings.catch_warnings(), redirect_stdout(StringIO()):  # it prints its name and device
            warnings.simplefilter("ignore")
            try:
                from chgnet.model.dynamics import CHGNetCalculator
                from chgnet.model.model import CHGNet as Model
            except Exception as error:  # its compiled parts and its imports raise in many ways
                raise unusable("chgnet", _NAME, error) from error
            model = Model.load(model_name=self.model, use_device=device, verbose=False)
            # The default warns on stderr, and gives such atoms an energy.
            return cast("Calculator", CHGNetCalculator(model, use_device=device, on_isolated_atoms="error"))
