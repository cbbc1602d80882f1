"""Training: from a model and a training split to weights."""

from kldm.training.loop import fit
from kldm.training.settings import RESUMED_WITH, Plateau, Training, set_precision

__all__ = ["RESUMED_WITH", "Plateau", "Training", "fit", "set_precision"]
