"""Training: denoising score matching with AdamW, a moving average of the weights, validation and exact resumption.

The noise of step n comes from a generator seeded by (seed, n) and the order of an epoch from (seed, epoch), so
the step counter alone determines what follows: a resumed run repeats the losses of an uninterrupted one (bitwise
on the CPU).
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import attrs
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm import tqdm

from kldm.crystals import CrystalStore
from kldm.errors import KldmError
from kldm.execution import Precision
from kldm.interfaces import Augmentation, LearningRate
from kldm.memory import most_pairs
from kldm.model import JointModel
from kldm.runtime.allocator import keep_memory
from kldm.runtime.distributed import world
from kldm.runtime.files import atomic_write
from kldm.runtime.interruption import Interruption
from kldm.runtime.seeding import seeded
from kldm.training import checkpoint as checkpoints
from kldm.training.averaging import MovingAverage
from kldm.training.checkpoint import Checkpoint, StartWith
from kldm.training.gradients import Gradients
from kldm.training.times import Draw, Times

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOOKS = 16
"""Steps after which several processes with GPUs see whether one of them was asked to stop."""

_PLATEAU_STATE = ("best", "num_bad_epochs", "last_epoch")  # what ReduceLROnPlateau changes; the rest is settings


@attrs.frozen(kw_only=True)
class Plateau:
    """A learning rate that falls when the training loss stops falling. The defaults are DiffCSP's.

    After more than ``patience`` epochs in a row without a mean training loss 0.01 % below the best one, the learning
    rate is multiplied by ``factor``. DiffCSP watches its validation loss (Jiao et al. 2023, their public code); here
    validation judges samples and happens seldom, so the loss of every epoch is watched.

    Args:
        factor: in (0, 1).
        patience: epochs without progress that are endured.
        minimum: the learning rate falls no lower.
    """

    factor: float = 0.6
    patience: int = 30
    minimum: float = 1e-4

    def __attrs_post_init__(self) -> None:
        if not 0 < self.factor < 1:
            raise KldmError(f"must be between 0 and 1, got {self.factor}", place="factor")
        for name in ("patience", "minimum"):
            if not getattr(self, name) >= 0:
                raise KldmError(f"must be at least 0, got {getattr(self, name)}", place=name)


@attrs.frozen(kw_only=True)
class Training:
    """Settings of ``fit``. The defaults are the paper's (Appendix I) where it states them, else its authors' code's.

    They differ on one thing, where the code is followed: "AdamW with the default PyTorch parameters" would be a weight
    decay of 0.01 without amsgrad, and the code has 1e-12 (here 0) with it. ``epochs`` is a guess: the paper speaks of
    early stopping, and the code trains until it is stopped.

    Args:
        epochs: passes over the training split.
        minutes: of training, after which it ends, validates and saves, in the midst of an epoch if need be; ``epochs``
            bounds it still. It is the time on the clock from the first step on, validations and compilation included,
            and goes on with a resumed run. The learning rate's schedule then follows the time. Such a run can be
            repeated only up to the clock: another one, or a resumed one, has other learning rates. None by default.
        start_from: a run folder, checkpoint or export of another run with the same network, from which training
            starts. The statistics fitted to its training split (of the lattice, for instance) are kept. It is read
            once; a run that has begun goes on without it.
        start_with: what is taken from it: the ``weights`` that it samples with, to be trained further by an optimiser
            and an average that are new; or the ``state`` of its last checkpoint, that is the weights in training, the
            moments of the optimiser and the moving average, which goes on at once, whatever ``ema_start``. Steps
            and epochs are counted anew in both cases.
        batch_size: crystals per step, of all processes together.
        learning_rate, weight_decay: of AdamW, which without weight decay is Adam.
        amsgrad: whether AdamW keeps the largest second moment (Reddi et al. 2018).
        ema_decay: decay of the moving average of the weights, per step.
        ema_start: epoch at which the average starts; before it, the weights in training are used.
        ema_warmup: whether the decay of the average's update n is at most (1 + n) / (10 + n): an average from the
            start that forgets the first weights. With it ``ema_start`` is better 0.
        whole_batches: whether the crystals of an epoch that fill no whole batch are left out, others in every epoch;
            otherwise the last batch of an epoch is smaller, and its step as large as the others'.
        s_min: training times are in (s_min, 1].
        times: ``independent`` times, or ``stratified`` ones, which cover (s_min, 1] evenly in every batch: one of B
            crystals in each B-th part of it. The mean gradient is the same, and its variance smaller.
        time_density: relative density of the times in as many equal bins of s, from s_min to 1; uniform by default.
            It weights the loss at time s, as the log-normal noise levels of EDM do (Karras et al. 2022), and the loss
            in the log is the weighted one.
        importance_sampling: whether the gradient of each crystal is divided by ``time_density``, so that its mean is
            that of uniform times and the density changes the variance alone. The loss in the log is not divided.
        clip_value: largest entry of the gradient, by absolute value, before ``clip_norm``; none by default.
        clip_norm: largest gradient norm; none by default.
        plateau: when and how the learning rate falls; it stays by default.
        learning_rate_schedule: the learning rate as a function of the step and of the share of training that is done.
            A run that is prolonged (``epochs``, ``minutes``) is then at another place of it: what has been trained is
            not trained again.
        augmentation: another description of the crystals, drawn for every batch before its noise; none by default.
        max_pairs: largest number of ordered pairs of atoms in one forward and backward pass of a process; a larger
            batch is done in pieces, with the same gradient. By default as many as half of the free memory holds, where
            the network can tell.
        precision: of matrix products: ``fp32``; ``tf32``, which a GPU alone has, so that it silently means fp32 on a
            CPU; ``bf16`` for those of the network's layers, the rest as in tf32; ``auto``, bf16 where the device
            multiplies it natively and else fp32.
        validate_every: epochs between validations; 0 never validates, and the last weights are the best.
        checkpoint_every: epochs between checkpoints (the end of training and an interruption save one anyway).
        seed: of weights, order and noise.
    """

    epochs: int = 4000
    minutes: float | None = None
    start_from: Path | None = None
    start_with: StartWith = "weights"
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    amsgrad: bool = True
    ema_decay: float = 0.999
    ema_start: int = 500
    ema_warmup: bool = False
    whole_batches: bool = False
    s_min: float = 1e-3
    times: Draw = "independent"
    time_density: tuple[float, ...] | None = None
    importance_sampling: bool = False
    clip_value: float | None = None
    clip_norm: float | None = None
    plateau: Plateau | None = None
    learning_rate_schedule: LearningRate | None = None
    augmentation: Augmentation | None = None
    max_pairs: int | None = None
    precision: Precision = "tf32"
    validate_every: int = 100
    checkpoint_every: int = 10
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        above = (
            "epochs",
            "batch_size",
            "learning_rate",
            "checkpoint_every",
            "clip_value",
            "clip_norm",
            "max_pairs",
            "minutes",
        )
        for name in above:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise KldmError(f"must be above 0, got {value}", place=name)
        for name in ("weight_decay", "ema_start", "validate_every"):
            if not getattr(self, name) >= 0:
                raise KldmError(f"must be at least 0, got {getattr(self, name)}", place=name)
        if not 0 <= self.ema_decay < 1:
            raise KldmError(f"must be at least 0 and below 1, got {self.ema_decay}", place="ema_decay")
        if not 0 < self.s_min < 1:
            raise KldmError(f"must be between 0 and 1, got {self.s_min}", place="s_min")
        for name, values in (
            ("precision", get_args(Precision)),
            ("times", get_args(Draw)),
            ("start_with", get_args(StartWith)),
        ):
            if getattr(self, name) not in values:
                raise KldmError(f"must be one of {', '.join(values)}, got {getattr(self, name)!r}", place=name)
        density = self.time_density
        if density is not None and not (density and all(0 < value < math.inf for value in density)):
            raise KldmError(f"must be numbers above 0, got {density}", place="time_density")
        if self.importance_sampling and density is None:
            problem = "there is no density of times to divide by"
            raise KldmError(problem, place="importance_sampling", remedy="give time_density")
        if self.plateau is not None and self.learning_rate_schedule is not None:
            remedy = "leave out training.plateau or training.learning_rate_schedule"
            raise KldmError("cannot rule a learning rate that has a schedule", place="plateau", remedy=remedy)
        if self.plateau is not None and self.plateau.minimum > self.learning_rate:
            raise KldmError(
                f"must be at most the learning_rate of {self.learning_rate}, got {self.plateau.minimum}",
                place="plateau.minimum",
            )


def set_precision(model: JointModel, precision: Precision) -> None:
    """Choose how matrix products are rounded; processes, losses and optimiser stay in float32.

    What it comes to on a device (``used_precision``) the model sees at every call: it may move afterwards.
    """
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    model.precision = precision


@attrs.define
class _Progress:
    """Where training stands; all of it is in the checkpoint."""

    step: int = 0
    best: float | None = None
    best_epoch: int | None = None
    seconds: float = 0.0
    summed: int = 0  # steps whose losses are in the sums


def fit(
    model: JointModel,
    train: CrystalStore,
    settings: Training,
    folder: Path,
    recipe: dict[str, Any],
    validate: Callable[[JointModel], Mapping[str, float]] | None = None,
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
        trainer = _Trainer(model, train, settings, folder, recipe)
    trainer.run(validate)


class _Trainer:
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
        self.times = Times(settings.s_min, settings.times, settings.time_density or (), self.device)
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            amsgrad=settings.amsgrad,
            fused=self.device.type in ("cuda", "cpu"),
        )
        self.plateau: ReduceLROnPlateau | None = None
        if (plateau := settings.plateau) is not None:
            self.plateau = ReduceLROnPlateau(
                self.optimizer, factor=plateau.factor, patience=plateau.patience, min_lr=plateau.minimum
            )
        self.average = MovingAverage(model, settings.ema_decay, warmup=settings.ema_warmup)
        self.progress = _Progress()
        self.clock = 0.0  # the seconds that all processes go by
        self.started = 0.0  # the reading of this process's clock at which there were none
        self.total = settings.epochs * self.steps_per_epoch
        self.sums: dict[str, Tensor] = {}
        self.order: tuple[int, list[int]] = (-1, [])
        set_precision(model, settings.precision)
        self._resume()
        # By all processes in their last step: how many were asked to stop, and the seconds of the writer.
        self.told = torch.tensor([0.0, self.clock], device=self.device)
        fitting = settings.max_pairs or most_pairs(
            model.network, self.device, training=True, processes=self.world.neighbours
        )
        self.gradients = Gradients(model, self.world, fitting)

    @property
    def epoch(self) -> int:
        return self.progress.step // self.steps_per_epoch

    @property
    def _epoch_begun(self) -> int:
        """The epoch of the last step, from 1."""
        return math.ceil(self.progress.step / self.steps_per_epoch)

    @property
    def over(self) -> bool:
        return self.progress.step >= self.total or self._share_of_time >= 1

    @property
    def _share_of_time(self) -> float:
        return self.clock / (60 * self.settings.minutes) if self.settings.minutes else 0.0

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def learning_rate_changes(self) -> bool:
        return self.settings.plateau is not None or self.settings.learning_rate_schedule is not None

    def _set_learning_rate(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def run(self, validate: Callable[[JointModel], Mapping[str, float]] | None) -> None:
        with Interruption() as interruption:
            self._loop(validate, interruption)
        self._finish()

    def _loop(self, validate: Callable[[JointModel], Mapping[str, float]] | None, interruption: Interruption) -> None:
        how: dict[str, Any] = {"desc": "train", "unit": "step", "smoothing": 0.05, "dynamic_ncols": True}
        total = None if self.settings.minutes else self.total
        self.started, quiet = time.monotonic() - self.progress.seconds, not self.world.is_writer
        with self._board() as board, tqdm(total=total, initial=self.progress.step, disable=quiet, **how) as bar:
            while not self.over or self.sums:
                if not self._at_end_of_epoch:  # where a run was cut off while it validated
                    self._step(interruption)
                    bar.update()
                self.progress.seconds = time.monotonic() - self.started
                self._look_at_the_clock()
                if self._at_end_of_epoch:
                    row = self._end_epoch(validate)
                    bar.set_postfix({name: f"{row[name]:.4g}" for name in ("loss", "validation") if name in row})
                    if board is not None:
                        for name, value in row.items():
                            board.add_scalar(f"train/{name}", value, self.progress.step)
                if self._asked(interruption) and not self.over:
                    self.world.by_writer(self._stop)

    def _board(self) -> "AbstractContextManager[SummaryWriter | None]":
        """TensorBoard's log, which the writer alone has."""
        if not self.world.is_writer:
            return nullcontext()
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._next_row)

    @property
    def _at_end_of_epoch(self) -> bool:
        """Whether all steps of an epoch are done, or all of training, and its end is not."""
        return bool(self.sums) and (self.progress.step % self.steps_per_epoch == 0 or self.over)

    @property
    def _next_row(self) -> int:
        """The least step that the log's next row may be of."""
        return self.progress.step + (not self._at_end_of_epoch)

    def _asked(self, interruption: Interruption) -> bool:
        """Whether to stop; of several processes all do so at the same step, if one is asked to."""
        if self.world.size == 1:
            return interruption.asked
        return self._looks and self.told[0].item() > 0

    @property
    def _looks(self) -> bool:
        """Whether to look at what the processes told each other; looking at a number of a GPU waits for it."""
        return self.device.type != "cuda" or self.progress.step % LOOKS == 0

    def _look_at_the_clock(self) -> None:
        """Of several processes all go by the writer's, of the same step, where the time matters."""
        if self.world.size == 1:
            self.clock = self.progress.seconds
        elif self.settings.minutes and self._looks:
            self.clock = self.told[1].item()

    def _stop(self) -> None:
        """End training before its time, with a checkpoint."""
        self._check_finite()
        self._write("last")
        spent, minutes = self.progress.seconds / 60, self.settings.minutes
        where = f", after {spent:.1f} of {minutes:g} minutes" if minutes else f" of {self.total}"
        raise KldmError(
            f"interrupted at step {self.progress.step}{where}; a checkpoint was written",
            place=str(self.folder),
            remedy="run the same command again to resume",
        )

    def _step(self, interruption: Interruption) -> None:
        settings, step = self.settings, self.progress.step
        rng = seeded(self.device, settings.seed, "noise", step)
        clean = self.train.batch(self._rows(step))
        if settings.augmentation is not None:
            clean = settings.augmentation.augmented(clean, rng)
        s = self.times(len(clean), rng)
        noised = self.model.noised(clean, s, rng)
        if settings.importance_sampling:
            noised = attrs.evolve(noised, weight=self.times.weight(s))
        self.optimizer.zero_grad()
        losses = self.gradients.add(noised)
        if self.world.size > 1:
            seconds = self.progress.seconds if self.world.is_writer else 0.0
            told = [torch.full_like(losses["loss"], value) for value in (float(interruption.asked), seconds)]
            shared = self.world.sum(torch.stack([*losses.values(), *told]))
            self.told = shared[-2:]
            losses = dict(zip(losses, shared[:-2].unbind(), strict=True))
        if settings.clip_value is not None:
            torch.nn.utils.clip_grad_value_(self.model.parameters(), settings.clip_value)
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        if settings.learning_rate_schedule is not None:
            progress = min(1.0, max(step / self.total, self._share_of_time))
            self._set_learning_rate(settings.learning_rate * settings.learning_rate_schedule.factor(step, progress))
        self.optimizer.step()
        if self.epoch >= settings.ema_start or self.average.updates:
            self.average.update(self.model)
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.progress.step += 1
        self.progress.summed += 1

    def _rows(self, step: int) -> list[int]:
        epoch, within = divmod(step, self.steps_per_epoch)
        if self.order[0] != epoch:
            rng = seeded(torch.device("cpu"), self.settings.seed, "order", epoch)
            self.order = (epoch, torch.randperm(len(self.train), generator=rng).tolist())
        size = self.settings.batch_size
        return self.order[1][within * size : (within + 1) * size]

    def _end_epoch(self, validate: Callable[[JointModel], Mapping[str, float]] | None) -> dict[str, float]:
        settings, epoch = self.settings, self._epoch_begun
        self.world.by_writer(self._check_finite)
        row = {name: (value / self.progress.summed).item() for name, value in self.sums.items()}
        if self.learning_rate_changes:
            row["learning_rate"] = self.learning_rate
        last = self.over
        if validate is not None and settings.validate_every and (epoch % settings.validate_every == 0 or last):
            values = validate(self._evaluated())
            # A score with a minus before its name is under "validation", and without it among the values.
            row |= {f"validation_{name}": value for name, value in values.items() if not name.startswith("-")}
            row["validation"] = next(iter(values.values()))
        self.progress.seconds = time.monotonic() - self.started  # validation included
        self.sums, self.progress.summed = {}, 0
        if self.plateau is not None:
            self.plateau.step(row["loss"])
        if "validation" in row and (self.progress.best is None or row["validation"] > self.progress.best):
            self.progress.best, self.progress.best_epoch = row["validation"], epoch
            self._write("best")
        if self.world.is_writer:
            self._log({"epoch": epoch, "step": self.progress.step, "seconds": round(self.progress.seconds, 2), **row})
        if last or epoch % self.settings.checkpoint_every == 0:
            self._write("last")
        return row

    def _log(self, entry: Mapping[str, float]) -> None:
        try:
            with (self.folder / "train.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
        except OSError as error:
            problem = f"cannot write the log ({error.strerror}); the last checkpoint is whole"
            raise KldmError(
                problem, place=str(self.folder), remedy="free some space and run the same command"
            ) from error

    def _check_finite(self) -> None:
        """Before anything is saved: weights behind a loss that is not finite are of no use."""
        sums = {name: value.item() for name, value in self.sums.items()}
        if not all(map(math.isfinite, sums.values())):
            raise KldmError(
                f"the loss of epoch {self._epoch_begun} is not finite ({sums})",
                place=str(self.folder),
                remedy="lower training.learning_rate or set training.clip_norm; the last checkpoint is from before",
            )

    def _evaluated(self) -> JointModel:
        averaged = self.average.module
        averaged.precision = self.model.precision
        return averaged if self.average.updates else self.model

    def _write(self, name: str) -> None:
        """A checkpoint in the ordinary course, by the writer."""
        if self.world.is_writer:
            self._save(name)

    def _save(self, name: str) -> None:
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.average.updates:
            tensors |= {f"average.{key}": value for key, value in self.average.module.state_dict().items()}
        if name == "last":
            tensors |= checkpoints.optimizer_tensors(self.optimizer)
            tensors |= {f"sums.{key}": value for key, value in self.sums.items()}
        state = {
            **attrs.asdict(self.progress),
            "epoch": self.epoch,
            "averaged": self.average.updates,
            "crystals": len(self.train),
        }
        if self.plateau is not None and self.plateau.last_epoch:  # before it has seen one, JSON cannot say its best
            state["plateau"] = {name: getattr(self.plateau, name) for name in _PLATEAU_STATE}
        if self.learning_rate_changes:
            state["learning_rate"] = self.learning_rate
        checkpoints.save(self.folder / "checkpoints" / f"{name}.safetensors", Checkpoint(self.recipe, tensors, state))

    def _resume(self) -> None:
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        path = self.folder / "checkpoints" / "last.safetensors"
        if path.exists():
            self._take(path)
        elif self.settings.start_from is not None:
            self._start(checkpoints.locate(self.settings.start_from, state=self.settings.start_with == "state"))
        # Rows of a run that was killed after its last checkpoint are repeated.
        if self.world.is_writer:
            _truncate_log(self.folder / "train.jsonl", self._next_row)

    def _take(self, path: Path) -> None:
        record = checkpoints.load(path)
        if record.state["crystals"] != len(self.train):
            raise KldmError(
                f"the run was trained on {record.state['crystals']} crystals, the data now has {len(self.train)}",
                place=str(path),
                remedy="restore the data or choose another --out",
            )
        self._take_state(record, path, remedy="choose another --out")
        if self.plateau is not None and "plateau" in record.state:
            self.plateau.load_state_dict(record.state["plateau"])
        if self.learning_rate_changes and "learning_rate" in record.state:
            self._set_learning_rate(record.state["learning_rate"])
        self.sums = {name: value.to(self.device) for name, value in record.part("sums").items()}
        state = dict(record.state)
        # Of a run older than the key, which ended epochs at their last step alone.
        state.setdefault("summed", (state["step"] - 1) % self.steps_per_epoch + 1 if self.sums else 0)
        self.progress = _Progress(**{field.name: state[field.name] for field in attrs.fields(_Progress)})
        self.clock = self.progress.seconds
        if self.progress.step > self.total:
            epochs = self.settings.epochs
            raise KldmError(
                f"the run is at step {self.progress.step} already, past the {self.total} of training.epochs = {epochs}",
                place=str(self.folder),
                remedy="ask for at least as many epochs, or choose another --out",
            )

    def _start(self, path: Path) -> None:
        record, remedy = checkpoints.load(path), "give training.start_from a model of the same network"
        if self.settings.start_with == "weights":
            self._load(record.weights, path, remedy)
            return
        moments = record.part("optimizer")
        if not moments:
            problem, remedy = "it holds weights alone, no state of training", 'set training.start_with = "weights"'
            raise KldmError(problem, place=str(path), remedy=f"name a run folder, or {remedy}")
        if self.settings.amsgrad and not any(name.endswith(".max_exp_avg_sq") for name in moments):
            problem = "its optimiser has not kept what amsgrad needs"
            raise KldmError(problem, place=str(path), remedy="set training.amsgrad = false")
        self._take_state(record, path, remedy)

    def _take_state(self, record: Checkpoint, path: Path, remedy: str) -> None:
        """The weights in training, their average, and the optimiser's moments."""
        self._load(record.part("model"), path, remedy)
        if record.state["averaged"]:
            self.average.module.load_state_dict(record.part("average"))
            self.average.updates = record.state["averaged"]
        checkpoints.load_optimizer(self.optimizer, record.part("optimizer"))

    def _load(self, weights: Mapping[str, Tensor], path: Path, remedy: str) -> None:
        try:
            self.model.load_state_dict({name: weight.to(torch.float32) for name, weight in weights.items()})
        except RuntimeError as error:
            raise KldmError("the weights do not fit the model", place=str(path), remedy=remedy) from error

    def _finish(self) -> None:
        """Leave the best weights in the model and in best.safetensors."""
        path = self.folder / "checkpoints" / "best.safetensors"
        with self.world.writer_first():
            if self.progress.best is None:
                self._write("best")
            checkpoints.load(path).load_weights(self.model)


def _truncate_log(path: Path, step: int) -> None:
    """Drop the rows from a step on, which a resumed run will repeat, and a line cut off by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] < step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    with atomic_write(path) as temporary:
        temporary.write_text("".join(kept))
