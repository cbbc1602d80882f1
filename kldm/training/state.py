"""The state of a training: all that changes from step to step, is saved in checkpoints and restored from them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kldm.errors import KldmError
from kldm.model import JointModel
from kldm.training import checkpoint as checkpoints
from kldm.training.averaging import MovingAverage
from kldm.training.checkpoint import Checkpoint
from kldm.training.settings import Training

_PLATEAU_STATE = ("best", "num_bad_epochs", "last_epoch")  # the attributes that ReduceLROnPlateau changes


@attrs.define
class Progress:
    """The progress of a training: numbers that every checkpoint has.

    Attributes:
        step: number of steps done.
        best, best_epoch: the highest validation score and its epoch; None before the first validation.
        seconds: duration of training so far.
        summed: number of steps whose losses are in the sums.
    """

    step: int = 0
    best: float | None = None
    best_epoch: int | None = None
    seconds: float = 0.0
    summed: int = 0


class TrainingState:
    """A model in training, with its optimiser and its moving average.

    Args:
        model: on its device.
        settings: the settings of the training.

    Attributes:
        progress: counters.
        sums: the sum of each loss over the steps since the last row of the log, by name.
        plateau: lowers the learning rate by the training loss, if the settings ask for it.
    """

    def __init__(self, model: JointModel, settings: Training) -> None:
        self.model, self._settings = model, settings
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            amsgrad=settings.amsgrad,
            fused=all(parameter.device.type in ("cuda", "cpu") for parameter in model.parameters()),
        )
        self.plateau: ReduceLROnPlateau | None = None
        if (plateau := settings.plateau) is not None:
            self.plateau = ReduceLROnPlateau(
                self.optimizer, factor=plateau.factor, patience=plateau.patience, min_lr=plateau.minimum
            )
        self.average = MovingAverage(model, settings.ema_decay, warmup=settings.ema_warmup)
        self.progress = Progress()
        self.sums: dict[str, Tensor] = {}

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value

    @property
    def learning_rate_changes(self) -> bool:
        return self._settings.plateau is not None or self._settings.learning_rate_schedule is not None

    @property
    def evaluated(self) -> JointModel:
        """The model that is validated: it has the averaged weights once there are any."""
        averaged = self.average.module
        averaged.precision = self.model.precision
        return averaged if self.average.updates else self.model

    def checkpoint(self, recipe: dict[str, Any], counters: Mapping[str, Any], *, resumable: bool) -> Checkpoint:
        """A checkpoint of the present state.

        Args:
            recipe: the complete recipe.
            counters: further numbers for its state.
            resumable: whether training can go on from it, with the optimiser's moments and the sums of losses.
        """
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.average.updates:
            tensors |= {f"average.{key}": value for key, value in self.average.module.state_dict().items()}
        if resumable:
            tensors |= checkpoints.optimizer_tensors(self.optimizer)
            tensors |= {f"sums.{key}": value for key, value in self.sums.items()}
        state = {**attrs.asdict(self.progress), "averaged": self.average.updates, **counters}
        if self.plateau is not None and self.plateau.last_epoch:  # until the first epoch its best is infinite
            state["plateau"] = {name: getattr(self.plateau, name) for name in _PLATEAU_STATE}
        if self.learning_rate_changes:
            state["learning_rate"] = self.learning_rate
        return Checkpoint(recipe, tensors, state)

    def resume(self, record: Checkpoint, path: Path, steps_per_epoch: int) -> None:
        """Restore exactly the training that wrote this checkpoint.

        Raises:
            KldmError: the checkpoint is of another model.
        """
        remedy = "restore the last.safetensors of this run, or choose another --out"
        if not record.part("optimizer"):
            problem = "it holds weights alone, as best.safetensors does, no state that training can go on from"
            raise KldmError(problem, place=str(path), remedy=remedy)
        self._restore(record, path, remedy)
        device = next(self.model.parameters()).device
        self.sums = {name: value.to(device) for name, value in record.part("sums").items()}
        try:
            state = dict(record.state)
            if self.plateau is not None and "plateau" in state:
                self.plateau.load_state_dict(state["plateau"])
            if self.learning_rate_changes and "learning_rate" in state:
                # A learning rate that the user has lowered meanwhile lowers what the plateau has left of it.
                now = self._settings.learning_rate
                earlier = record.recipe.get("training", {}).get("learning_rate", now)
                self.learning_rate = state["learning_rate"] * (now / earlier)
            # Checkpoints of older versions lack the key; they ended epochs only at their last step.
            state.setdefault("summed", (state["step"] - 1) % steps_per_epoch + 1 if self.sums else 0)
            self.progress = Progress(**{field.name: state[field.name] for field in attrs.fields(Progress)})
        except (KeyError, TypeError, ValueError) as error:
            raise KldmError(f"its counters cannot be read ({error!r})", place=str(path), remedy=remedy) from error

    def start_from(self, path: Path) -> None:
        """Begin a new training from the weights or the state of another run's checkpoint (``Training.start_with``).

        Raises:
            KldmError: the checkpoint is of another model, or has no state.
        """
        record, remedy = checkpoints.load(path), "give training.start_from a model of the same network"
        if self._settings.start_with == "weights":
            self._load_weights(record.weights, path, remedy)
            return
        moments = record.part("optimizer")
        if not moments:
            problem, remedy = "it holds weights alone, no state of training", 'set training.start_with = "weights"'
            raise KldmError(problem, place=str(path), remedy=f"name a run folder, or {remedy}")
        if self._settings.amsgrad and not any(name.endswith(".max_exp_avg_sq") for name in moments):
            problem = "its optimiser has not kept what amsgrad needs"
            raise KldmError(problem, place=str(path), remedy="set training.amsgrad = false")
        self._restore(record, path, remedy)

    def _restore(self, record: Checkpoint, path: Path, remedy: str) -> None:
        """Load the weights in training, their average, and the optimiser's moments."""
        self._load_weights(record.part("model"), path, remedy)
        try:
            if updates := record.state.get("averaged"):
                self.average.module.load_state_dict(record.part("average"))
                self.average.updates = updates
            checkpoints.load_optimizer(self.optimizer, record.part("optimizer"))
        except (RuntimeError, ValueError) as error:
            raise KldmError(
                "its average or optimiser does not fit the model", place=str(path), remedy=remedy
            ) from error

    def _load_weights(self, weights: Mapping[str, Tensor], path: Path, remedy: str) -> None:
        try:
            self.model.load_state_dict({name: weight.to(torch.float32) for name, weight in weights.items()})
        except RuntimeError as error:
            raise KldmError("the weights do not fit the model", place=str(path), remedy=remedy) from error
