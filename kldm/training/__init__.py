"""Training: from a model and a training split to weights."""

from kldm.training.loop import Plateau, Training, fit, set_precision

__all__ = ["Plateau", "Training", "fit", "set_precision"]
