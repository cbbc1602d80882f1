"""Packages and devices that a potential needs, and one sentence of error if they are missing."""

import os
from importlib.metadata import PackageNotFoundError, version

import torch

from kldm.errors import KldmError


def package_version(package: str, potential: str) -> str:
    """The version of an installed package.

    Raises:
        KldmError: it is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        remedy = f"pip install 'kldm[{package}]' (docs/stability.md explains it for a torch for CPUs)"
        raise KldmError(f"the package {package} is not installed", place=potential, remedy=remedy) from None


def unusable(package: str, potential: str, error: Exception) -> KldmError:
    """The error for a package that is installed but cannot be imported."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    remedy = f"see docs/stability.md on installing {package}"
    if "torchvision" in reason:
        remedy = "its torchvision does not fit this torch and is not needed: pip uninstall torchvision torchaudio"
    return KldmError(f"the package {package} cannot be imported ({reason})", place=potential, remedy=remedy)


def usual_device(device: str | None, potential: str) -> str:
    """The given device; by default a GPU if there is one, and one for each process that torchrun starts.

    Raises:
        KldmError: it cannot be used.
    """
    if device is None:
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        problem = f"its device {device} is not usable here ({reason})"
        raise KldmError(problem, place=potential, remedy="leave it out or say cpu") from error
    return device
