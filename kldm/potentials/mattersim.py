"""MatterSim: the potential behind the published shares of stable structures. The user provides its weights."""

import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import torch

from kldm.errors import KldmError
from kldm.interfaces import EnergyScale, Json
from kldm.potentials.packages import package_version, unusable, usual_device
from kldm.registry import potential
from kldm.runtime.files import digest
from kldm.runtime.paths import expanded

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

_NAME = "mattersim.v1"

USUAL = Path("~/.local/mattersim/pretrained_models/mattersim-v1.0.0-1M.pth")
"""Where MatterSim itself stores the weights behind the published figures."""


@potential(_NAME)
@attrs.frozen(kw_only=True)
class MatterSim:
    """MatterSim (Yang et al., arXiv 2405.04967): raw PBE(+U) energies (``uncorrected``), elements up to Z = 94.

    Args:
        weights: a file such as mattersim-v1.0.0-1M.pth; by default the one that MatterSim stores. Nothing is
            downloaded, and no code in the file is executed.
        device: cpu, cuda ...; by default a GPU if there is one.
    """

    weights: Path | None = None
    device: str | None = None

    @property
    def label(self) -> str:
        return (self.weights or USUAL).name

    @property
    def scale(self) -> EnergyScale:
        return "uncorrected"

    @property
    def identity(self) -> Mapping[str, Json]:
        file = self._file()
        weights = _digest(file, file.stat().st_mtime_ns)
        return {"name": _NAME, "sha256": weights, "mattersim": package_version("mattersim", _NAME)}

    @property
    def cutoff(self) -> float:
        return 5.0

    def calculator(self) -> "Calculator":
        package_version("mattersim", _NAME)
        file, device = self._file(), usual_device(self.device, _NAME)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                from loguru import logger
                from mattersim.forcefield import MatterSimCalculator
                from mattersim.forcefield import Potential as Model
                from mattersim.forcefield.m3gnet.m3gnet import M3Gnet
            except Exception as error:  # in particular a torchvision that does not fit
                raise unusable("mattersim", _NAME, error) from error
            logger.disable("mattersim")
            content = _content(file)
            try:
                network = M3Gnet(device=device, **content["model_args"]).to(device)
                missing = set(dict(network.named_parameters())) - set(content["model"])
                # MatterSim ignores other names too, but would also use weights that the file does not have.
                network.load_state_dict(content["model"], strict=False)
            except (RuntimeError, TypeError, AttributeError) as error:
                raise _foreign(file) from error
            if missing:
                raise _foreign(file)
            # The wrapper sets TF32 for the whole process, in which a model may be training.
            allow_tf32 = torch.backends.cuda.matmul.allow_tf32
            try:
                model = Model(network.eval(), device=device)
            finally:
                torch.backends.cuda.matmul.allow_tf32 = allow_tf32
            return cast("Calculator", MatterSimCalculator(potential=model, args_dict={}, device=device))

    def _file(self) -> Path:
        file = expanded(self.weights or USUAL)
        if not file.is_file():
            remedy = "download mattersim-v1.0.0-1M.pth from MatterSim's repository and name it as `weights`"
            raise KldmError(f"there are no weights {file}", place=_NAME, remedy=remedy)
        return file


def _content(file: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise in many ways
        raise _foreign(file) from error
    if not isinstance(content, Mapping) or content.get("model_name") != "m3gnet":
        raise _foreign(file)
    if not all(isinstance(content.get(key), Mapping) for key in ("model", "model_args")):
        raise _foreign(file)
    return content


def _foreign(file: Path) -> KldmError:
    remedy = "get mattersim-v1.0.0-1M.pth or mattersim-v1.0.0-5M.pth again"
    return KldmError("the file does not hold weights of MatterSim's M3GNet", place=str(file), remedy=remedy)


@lru_cache
def _digest(file: Path, _: int) -> str:
    """Cached by the time of the last change."""
    return digest(file)
