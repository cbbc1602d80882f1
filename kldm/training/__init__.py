"""Training: from a model and a training split to weights."""

from kldm.training.loop import fit
from kldm.training.settings import Plateau, Training, set_precision

__all__ = ["Plateau", "Training", "fit", "set_precision"]
