"""Training: denoising score matching with AdamW, a moving average of the weights, validation and exact resumption.

The noise of step n comes from a generator seeded by (seed, n) and the order of an epoch from (seed, epoch), so
the step counter alone determines what follows: a resumed run repeats the losses of an uninterrupted one (bitwise
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

LOOKS = 16
"""Steps after which several processes with GPUs see whether one of them was asked to stop."""

Validate = Callable[[JointModel], Mapping[str, float]]
"""Judges a model: named numbers, of which the first, the higher the better, chooses the best checkpoint."""


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
        model: on its device; ends with the weights of the best validation (or the last ones without any).
        train: the training split, on the same device.
        settings: see ``Training``.
        folder: gets ``checkpoints/last.safetensors``, ``checkpoints/best.safetensors``, ``train.jsonl`` and
            ``tensorboard/``.
        recipe: the complete recipe, stored in every checkpoint.
        validate: called with the model holding the averaged weights; named numbers, of which the first, the
            higher the better, chooses the best checkpoint.

    In several processes (``kldm.runtime.distributed``) all call this alike; the writer writes.

    Raises:
        KldmError: the folder's checkpoint, or the one to start from, does not fit; the loss is not finite; or training
            was interrupted (a checkpoint was written; the same call resumes).
    """
    keep_memory()
    with world().writer_first():  # it makes the folder, and tells what is wrong
        trainer = Trainer(model, train, settings, folder, recipe)
    trainer.run(validate)


class Trainer:
    """One training: see ``fit``. It stands where the folder's last checkpoint is."""

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
        self._resume()
        self.clock = self.state.progress.seconds  # the seconds that all processes go by
        self.started = 0.0  # the reading of this process's clock at which there were none
        self.order: tuple[int, list[int]] = (-1, [])
        # By all processes in their last step: how many were asked to stop, and the seconds of the writer.
        self.told = torch.tensor([0.0, self.clock], device=self.device)
        neighbours = self.world.neighbours
        fitting = settings.max_pairs or most_pairs(model.network, self.device, training=True, processes=neighbours)
        self.gradients = Gradients(model, self.world, fitting)

    def run(self, validate: Validate | None) -> None:
        """Train to the end, and leave the best weights in the model and in best.safetensors."""
        progress = self.state.progress
        log = TrainingLog(
            self.folder,
            step=progress.step,
            next_row=progress.step + (not self._at_end_of_epoch),
            total=None if self.settings.minutes else self.total,
            quiet=not self.world.is_writer,
        )
        self.started = time.monotonic() - progress.seconds
        with Interruption() as interruption, log:
            while not self.over or self.state.sums:
                if not self._at_end_of_epoch:  # where a run was cut off while it validated
                    self._step(interruption)
                    log.advance()
                progress.seconds = time.monotonic() - self.started
                self._look_at_the_clock()
                if self._at_end_of_epoch:
                    self._end_epoch(validate, log)
                if self._asked(interruption) and not self.over:
                    self.world.by_writer(self._stop)
        with self.world.writer_first():
            if progress.best is None:
                self._write("best")
            checkpoints.load(self._path("best")).load_weights(self.model)

    @property
    def over(self) -> bool:
        return self.state.progress.step >= self.total or self._share_of_time >= 1

    @property
    def _epoch(self) -> int:
        """Whole epochs done."""
        return self.state.progress.step // self.steps_per_epoch

    @property
    def _epoch_begun(self) -> int:
        """The epoch of the last step, from 1."""
        return math.ceil(self.state.progress.step / self.steps_per_epoch)

    @property
    def _at_end_of_epoch(self) -> bool:
        """Whether all steps of an epoch are done, or all of training, and its end is not."""
        return bool(self.state.sums) and (self.state.progress.step % self.steps_per_epoch == 0 or self.over)

    @property
    def _share_of_time(self) -> float:
        return self.clock / (60 * self.settings.minutes) if self.settings.minutes else 0.0

    def _step(self, interruption: Interruption) -> None:
        settings, state, step = self.settings, self.state, self.state.progress.step
        batch = self._batch(step)
        state.optimizer.zero_grad()
        losses = self._shared(self.gradients.add(batch), interruption)
        if settings.clip_value is not None:
            torch.nn.utils.clip_grad_value_(self.model.parameters(), settings.clip_value)
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        if settings.learning_rate_schedule is not None:
            done = min(1.0, max(step / self.total, self._share_of_time))
            state.learning_rate = settings.learning_rate * settings.learning_rate_schedule.factor(step, done)
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

    def _shared(self, losses: dict[str, Tensor], interruption: Interruption) -> dict[str, Tensor]:
        """The losses of the batch from those of the processes' shares, who tell each other when to stop by the way."""
        if self.world.size == 1:
            return losses
        seconds = self.state.progress.seconds if self.world.is_writer else 0.0
        told = [torch.full_like(losses["loss"], value) for value in (float(interruption.asked), seconds)]
        shared = self.world.sum(torch.stack([*losses.values(), *told]))
        self.told = shared[-2:]
        return dict(zip(losses, shared[:-2].unbind(), strict=True))

    def _asked(self, interruption: Interruption) -> bool:
        """Whether to stop; of several processes all do so at the same step, if one is asked to."""
        if self.world.size == 1:
            return interruption.asked
        return self._looks and self.told[0].item() > 0

    def _look_at_the_clock(self) -> None:
        """Of several processes all go by the writer's, of the same step, where the time matters."""
        if self.world.size == 1:
            self.clock = self.state.progress.seconds
        elif self.settings.minutes and self._looks:
            self.clock = self.told[1].item()

    @property
    def _looks(self) -> bool:
        """Whether to look at what the processes told each other; looking at a number of a GPU waits for it."""
        return self.device.type != "cuda" or self.state.progress.step % LOOKS == 0

    def _end_epoch(self, validate: Validate | None, log: TrainingLog) -> None:
        settings, state, progress, epoch = self.settings, self.state, self.state.progress, self._epoch_begun
        self.world.by_writer(self._check_finite)
        row = {name: (value / progress.summed).item() for name, value in state.sums.items()}
        if state.learning_rate_changes:
            row["learning_rate"] = state.learning_rate
        last = self.over
        if validate is not None and settings.validate_every and (epoch % settings.validate_every == 0 or last):
            values = validate(state.evaluated)
            # A score with a minus before its name is under "validation", and without it among the values.
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
        """Before anything is saved: weights behind a loss that is not finite are of no use."""
        sums = {name: value.item() for name, value in self.state.sums.items()}
        if not all(map(math.isfinite, sums.values())):
            raise KldmError(
                f"the loss of epoch {self._epoch_begun} is not finite ({sums})",
                place=str(self.folder),
                remedy="lower training.learning_rate or set training.clip_norm; the last checkpoint is from before",
            )

    def _stop(self) -> None:
        """End training before its time, with a checkpoint."""
        self._check_finite()
        self._write("last")
        spent, minutes = self.state.progress.seconds / 60, self.settings.minutes
        where = f", after {spent:.1f} of {minutes:g} minutes" if minutes else f" of {self.total}"
        raise KldmError(
            f"interrupted at step {self.state.progress.step}{where}; a checkpoint was written",
            place=str(self.folder),
            remedy="run the same command again to resume",
        )

    def _path(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{name}.safetensors"

    def _write(self, name: str) -> None:
        """A checkpoint, by the writer; from ``last`` training can go on."""
        if self.world.is_writer:
            counters = {"epoch": self._epoch, "crystals": len(self.train)}
            checkpoints.save(self._path(name), self.state.checkpoint(self.recipe, counters, resumable=name == "last"))

    def _resume(self) -> None:
        """Go on from the folder's last checkpoint, or else begin from ``start_from``."""
        path = self._path("last")
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
