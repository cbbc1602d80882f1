"""Training: denoising score matching with AdamW, a moving average of the weights, validation and exact resumption.

The noise of step n comes from a generator seeded by (seed, n) and the order of an epoch from (seed, epoch), so
the step counter alone determines what follows: a resumed run has the same losses as an uninterrupted one (bitwise
on the CPU).
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from kldm.crystals import CrystalStore
from kldm.errors import KldmError
from kldm.memory import most_pairs
from kldm.model import JointModel, NoisedBatch
from kldm.runtime.allocator import keep_memory
from kldm.runtime.distributed import world
from kldm.runtime.interruption import Interruption
from kldm.runtime.seeding import seeded
from kldm.training import checkpoint as checkpoints
from kldm.training.gradients import Gradients
from kldm.training.log import TrainingLog
from kldm.training.settings import Training, set_precision
from kldm.training.state import TrainingState
from kldm.training.times import Times

_CHANGES = ("learning_rate", "learning_rate_schedule", "plateau", "clip_value", "clip_norm", "precision")
"""Those of ``RESUMED_WITH`` that decide the weights."""

SYNC_EVERY = 16
"""Steps between two looks of several processes with GPUs at whether one of them was asked to stop."""

Validate = Callable[[JointModel], Mapping[str, float]]
"""Gives named scores of a model. The first one, for which higher is better, selects the best checkpoint."""


def fit(
    model: JointModel,
    train: CrystalStore,
    settings: Training,
    folder: Path,
    recipe: dict[str, Any],
    validate: Validate | None = None,
) -> None:
    """Train ``model`` in place, from the last checkpoint of ``folder`` if there is one.

    Args:
        model: on its device; it ends with the weights of the best validation (the last ones if there was none).
        train: the training split, on the same device.
        settings: see ``Training``.
        folder: for ``checkpoints/last.safetensors``, ``checkpoints/best.safetensors``, ``train.jsonl`` and
            ``tensorboard/``.
        recipe: the complete recipe, stored in every checkpoint.
        validate: called with the model of the averaged weights; see ``Validate``.

    With several processes (``kldm.runtime.distributed``) all make the same call, and only the writer writes files.

    Raises:
        KldmError: the folder's checkpoint, or the one to start from, does not fit; the loss is not finite; or training
            was interrupted (a checkpoint was written, and the same call resumes).
    """
    keep_memory()
    with world().writer_first():  # the writer makes the folder, and raises its errors first
        trainer = Trainer(model, train, settings, folder, recipe)
    trainer.run(validate)


class Trainer:
    """A training run (see ``fit``), which continues from the last checkpoint of its folder."""

    def __init__(
        self, model: JointModel, train: CrystalStore, settings: Training, folder: Path, recipe: dict[str, Any]
    ) -> None:
        self.model, self.train, self.settings, self.folder, self.recipe = model, train, settings, folder, recipe
        self.device, self.world = train.device, world()
        self.steps_per_epoch = math.ceil(len(train) / settings.batch_size)
        if settings.whole_batches:
            self.steps_per_epoch = len(train) // settings.batch_size
            if not self.steps_per_epoch:
                problem = f"{len(train)} crystals fill no batch of {settings.batch_size}"
                raise KldmError(problem, place="training.whole_batches", remedy="lower training.batch_size")
        self.total = settings.epochs * self.steps_per_epoch
        self.times = Times(settings.s_min, settings.times, settings.time_density or (), self.device)
        set_precision(model, settings.precision)
        self.state = TrainingState(model, settings)
        self.changes: list[dict[str, Any]] = []  # of settings that decide the weights, with the step from which on
        self._resume()
        self.seconds = self.state.progress.seconds  # seconds of training, the same number in all processes
        self.started = 0.0  # the reading of this process's clock at 0 seconds
        self.order: tuple[int, list[int]] = (-1, [])
        # Exchanged in the last step: the number of processes that were asked to stop, and the writer's seconds.
        self.signals = torch.tensor([0.0, self.seconds], device=self.device)
        neighbours = self.world.neighbours
        max_pairs = settings.max_pairs or most_pairs(model.network, self.device, training=True, processes=neighbours)
        self.gradients = Gradients(model, self.world, max_pairs)

    def run(self, validate: Validate | None) -> None:
        """Train to the end, and leave the best weights in the model and in best.safetensors."""
        progress = self.state.progress
        log = TrainingLog(
            self.folder,
            step=progress.step,
            next_row=progress.step + (not self._epoch_is_complete),
            total=None if self.settings.minutes else self.total,
            quiet=not self.world.is_writer,
        )
        self.started = time.monotonic() - progress.seconds
        with Interruption() as interruption, log:
            while not self.is_over or self.state.sums:
                if not self._epoch_is_complete:  # a run may have been interrupted in its validation
                    self._step(interruption)
                    log.advance()
                progress.seconds = time.monotonic() - self.started
                self._read_clock()
                if self._epoch_is_complete:
                    self._end_epoch(validate, log)
                if self._stop_requested(interruption) and not self.is_over:
                    self.world.by_writer(self._stop)
        with self.world.writer_first():
            if progress.best is None:
                self._write("best")
            checkpoints.load(self._checkpoint_path("best")).load_weights(self.model)

    @property
    def is_over(self) -> bool:
        return self.state.progress.step >= self.total or self._fraction_of_time >= 1

    @property
    def _epoch(self) -> int:
        """The number of epochs done."""
        return self.state.progress.step // self.steps_per_epoch

    @property
    def _current_epoch(self) -> int:
        """The number, from 1, of the epoch of the last step."""
        return math.ceil(self.state.progress.step / self.steps_per_epoch)

    @property
    def _epoch_is_complete(self) -> bool:
        """Whether the last step of an epoch, or of training, is done, but the epoch is not logged yet."""
        return bool(self.state.sums) and (self.state.progress.step % self.steps_per_epoch == 0 or self.is_over)

    @property
    def _fraction_of_time(self) -> float:
        return self.seconds / (60 * self.settings.minutes) if self.settings.minutes else 0.0

    def _step(self, interruption: Interruption) -> None:
        settings, state, step = self.settings, self.state, self.state.progress.step
        batch = self._batch(step)
        state.optimizer.zero_grad()
        losses = self._summed(self.gradients.add(batch), interruption)
        if settings.clip_value is not None:
            torch.nn.utils.clip_grad_value_(self.model.parameters(), settings.clip_value)
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        if settings.learning_rate_schedule is not None:
            progress = min(1.0, max(step / self.total, self._fraction_of_time))
            state.learning_rate = settings.learning_rate * settings.learning_rate_schedule.factor(step, progress)
        state.optimizer.step()
        if self._epoch >= settings.ema_start or state.average.updates:
            state.average.update(self.model)
        for name, value in losses.items():
            state.sums[name] = state.sums[name] + value if name in state.sums else value
        state.progress.step += 1
        state.progress.summed += 1

    def _batch(self, step: int) -> NoisedBatch:
        """The crystals of a step with their noise."""
        settings, rng = self.settings, seeded(self.device, self.settings.seed, "noise", step)
        clean = self.train.batch(self._rows(step))
        if settings.augmentation is not None:
            clean = settings.augmentation.augmented(clean, rng)
        s = self.times(len(clean), rng)
        noised = self.model.noised(clean, s, rng)
        return attrs.evolve(noised, weight=self.times.weight(s)) if settings.importance_sampling else noised

    def _rows(self, step: int) -> list[int]:
        epoch, within = divmod(step, self.steps_per_epoch)
        if self.order[0] != epoch:
            rng = seeded(torch.device("cpu"), self.settings.seed, "order", epoch)
            self.order = (epoch, torch.randperm(len(self.train), generator=rng).tolist())
        size = self.settings.batch_size
        return self.order[1][within * size : (within + 1) * size]

    def _summed(self, losses: dict[str, Tensor], interruption: Interruption) -> dict[str, Tensor]:
        """The losses of the batch, summed over the processes. The same exchange tells them when to stop."""
        if self.world.size == 1:
            return losses
        seconds = self.state.progress.seconds if self.world.is_writer else 0.0
        signals = [torch.full_like(losses["loss"], value) for value in (float(interruption.asked), seconds)]
        sums = self.world.sum(torch.stack([*losses.values(), *signals]))
        self.signals = sums[-2:]
        return dict(zip(losses, sums[:-2].unbind(), strict=True))

    def _stop_requested(self, interruption: Interruption) -> bool:
        """Whether to stop. Several processes all stop at the same step if one of them was asked to."""
        if self.world.size == 1:
            return interruption.asked
        return self._reads_signals and self.signals[0].item() > 0

    def _read_clock(self) -> None:
        """Update the seconds of training. If time matters, several processes all take the writer's of the same step."""
        if self.world.size == 1:
            self.seconds = self.state.progress.seconds
        elif self.settings.minutes and self._reads_signals:
            self.seconds = self.signals[1].item()

    @property
    def _reads_signals(self) -> bool:
        """Whether to read the signals of the processes in this step; reading a number waits for the GPU."""
        return self.device.type != "cuda" or self.state.progress.step % SYNC_EVERY == 0

    def _end_epoch(self, validate: Validate | None, log: TrainingLog) -> None:
        settings, state, progress, epoch = self.settings, self.state, self.state.progress, self._current_epoch
        self.world.by_writer(self._check_finite)
        row = {name: (value / progress.summed).item() for name, value in state.sums.items()}
        if state.learning_rate_changes:
            row["learning_rate"] = state.learning_rate
        last = self.is_over
        if validate is not None and settings.validate_every and (epoch % settings.validate_every == 0 or last):
            values = validate(state.evaluated)
            # A score "-name" is the negated value "name", which is logged as well; the score is under "validation".
            row |= {f"validation_{name}": value for name, value in values.items() if not name.startswith("-")}
            row["validation"] = next(iter(values.values()))
        progress.seconds = time.monotonic() - self.started  # validation included
        state.sums, progress.summed = {}, 0
        if state.plateau is not None:
            state.plateau.step(row["loss"])
        if "validation" in row and (progress.best is None or row["validation"] > progress.best):
            progress.best, progress.best_epoch = row["validation"], epoch
            self._write("best")
        log.epoch(epoch, progress.step, progress.seconds, row)
        if last or epoch % settings.checkpoint_every == 0:
            self._write("last")

    def _check_finite(self) -> None:
        """Check before anything is saved: the weights are of no use if the loss is not finite."""
        sums = {name: value.item() for name, value in self.state.sums.items()}
        if not all(map(math.isfinite, sums.values())):
            raise self._diverged(f"the loss of epoch {self._current_epoch} is not finite ({sums})")

    def _diverged(self, problem: str) -> KldmError:
        path = self._checkpoint_path("last")
        done = f"from step {checkpoints.load(path).state['step']} on" if path.exists() else "from the start"
        lower = f"--training.learning_rate {self.settings.learning_rate / 4:.1g} or --training.clip_norm 1"
        remedy = f"run the same command with {lower}: training goes on {done}"
        return KldmError(problem, place=str(self.folder), remedy=remedy)

    def _stop(self) -> None:
        """Interrupt training with a checkpoint."""
        self._check_finite()
        self._write("last")
        spent, minutes = self.state.progress.seconds / 60, self.settings.minutes
        where = f", after {spent:.1f} of {minutes:g} minutes" if minutes else f" of {self.total}"
        raise KldmError(
            f"interrupted at step {self.state.progress.step}{where}; a checkpoint was written",
            place=str(self.folder),
            remedy="run the same command again to resume",
        )

    def _checkpoint_path(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{name}.safetensors"

    def _write(self, name: str) -> None:
        """Write a checkpoint, if this process is the writer; training can go on from ``last``."""
        if self.world.is_writer:
            counters = {
                "epoch": self._epoch,
                "crystals": len(self.train),
                **({"changes": c} if (c := self.changes) else {}),
            }
            checkpoint = self.state.checkpoint(self.recipe, counters, resumable=name == "last")
            try:
                checkpoint.check_finite()
            except KldmError as error:
                raise self._diverged(
                    f"training has diverged at step {self.state.progress.step} ({error.problem})"
                ) from error
            checkpoints.save(self._checkpoint_path(name), checkpoint)

    def _resume(self) -> None:
        """Resume from the folder's last checkpoint; without one, begin from ``start_from``."""
        path = self._checkpoint_path("last")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if (start := self.settings.start_from) is not None:
                self.state.start_from(checkpoints.locate(start, state=self.settings.start_with == "state"))
            return
        record = checkpoints.load(path)
        if record.state["crystals"] != len(self.train):
            problem = f"the run was trained on {record.state['crystals']} crystals, the data now has {len(self.train)}"
            raise KldmError(problem, place=str(path), remedy="restore the data or choose another --out")
        if (step := record.state["step"]) > self.total:
            problem = f"the run is at step {step} already, past the {self.total} of "
            remedy = "ask for at least as many epochs, or choose another --out"
            raise KldmError(f"{problem}training.epochs = {self.settings.epochs}", place=str(self.folder), remedy=remedy)
        self.state.resume(record, path, self.steps_per_epoch)
        earlier, now = (recipe.get("training", {}) for recipe in (record.recipe, self.recipe))
        changed = {key: [earlier[key], now[key]] for key in _CHANGES if key in earlier and earlier[key] != now.get(key)}
        if changed and step == self.total:
            key, (value, _) = next(iter(changed.items()))
            problem = f"training has ended with {key} = {value}, which cannot change any more"
            raise KldmError(
                problem, place=f"training.{key}", remedy="raise training.epochs, or leave the key as it was"
            )
        self.changes = [*record.state.get("changes", ()), *([{"step": step, **changed}] if changed else ())]
