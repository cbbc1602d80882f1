"""kldm: generating crystalline materials with diffusion models.

The public names are below; each is imported from its module on first use, so that ``import kldm`` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kldm.version import __version__

if TYPE_CHECKING:
    from kldm.crystals import Crystals, CrystalStore, Layout
    from kldm.data import Data
    from kldm.errors import KldmError
    from kldm.interfaces import (
        Augmentation,
        Candidate,
        Channel,
        Codec,
        Correction,
        DiffusionProcess,
        Interface,
        Latent,
        LearningRate,
        Measurement,
        Metric,
        Move,
        Noised,
        Potential,
        Prediction,
        Sampler,
        Samples,
        Schedule,
        ScoreNetwork,
        Step,
        Terms,
    )
    from kldm.model import JointModel
    from kldm.registry import (
        augmentation,
        codec,
        learning_rate,
        metric,
        network,
        potential,
        process,
        sampler,
        schedule,
    )
    from kldm.runs.experiment import Evaluation, Experiment, Validation
    from kldm.runs.run import run
    from kldm.runs.trained import load_run
    from kldm.training import Training, fit

_HOME = {
    "kldm.crystals": ("CrystalStore", "Crystals", "Layout"),
    "kldm.data": ("Data",),
    "kldm.errors": ("KldmError",),
    "kldm.runs.experiment": ("Evaluation", "Experiment", "Validation"),
    "kldm.interfaces": (
        "Augmentation",
        "Candidate",
        "Channel",
        "Codec",
        "Correction",
        "DiffusionProcess",
        "Interface",
        "Latent",
        "LearningRate",
        "Measurement",
        "Metric",
        "Move",
        "Noised",
        "Potential",
        "Prediction",
        "Sampler",
        "Samples",
        "Schedule",
        "ScoreNetwork",
        "Step",
        "Terms",
    ),
    "kldm.model": ("JointModel",),
    "kldm.registry": (
        "augmentation",
        "codec",
        "learning_rate",
        "metric",
        "network",
        "potential",
        "process",
        "sampler",
        "schedule",
    ),
    "kldm.runs.run": ("run",),
    "kldm.runs.trained": ("load_run",),
    "kldm.training": ("Training", "fit"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Augmentation",
    "Candidate",
    "Channel",
    "Codec",
    "Correction",
    "CrystalStore",
    "Crystals",
    "Data",
    "DiffusionProcess",
    "Evaluation",
    "Experiment",
    "Interface",
    "JointModel",
    "KldmError",
    "Latent",
    "Layout",
    "LearningRate",
    "Measurement",
    "Metric",
    "Move",
    "Noised",
    "Potential",
    "Prediction",
    "Sampler",
    "Samples",
    "Schedule",
    "ScoreNetwork",
    "Step",
    "Terms",
    "Training",
    "Validation",
    "__version__",
    "augmentation",
    "codec",
    "fit",
    "learning_rate",
    "load_run",
    "metric",
    "network",
    "potential",
    "process",
    "run",
    "sampler",
    "schedule",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'kldm' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)
