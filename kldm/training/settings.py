"""The settings of training, which are the section [training] of a recipe."""

from pathlib import Path

import attrs
import torch
from attrs.validators import optional

from kldm.errors import KldmError
from kldm.execution import Precision
from kldm.interfaces import Augmentation, LearningRate
from kldm.model import JointModel
from kldm.training.checkpoint import StartWith
from kldm.training.times import Draw
from kldm.validators import above, at_least, each, one_of, within

RESUMED_WITH = (
    "epochs",
    "minutes",
    "max_pairs",
    "learning_rate",
    "learning_rate_schedule",
    "plateau",
    "clip_value",
    "clip_norm",
    "precision",
    "validate_every",
    "checkpoint_every",
)
"""The settings that may differ when training is resumed: how long it lasts, how it is watched and cut into pieces, and
what keeps it stable."""


@attrs.frozen(kw_only=True)
class Plateau:
    """A learning rate that falls when the training loss stops falling. The defaults are DiffCSP's.

    After more than ``patience`` epochs in a row without a mean training loss 0.01 % below the best one, the learning
    rate is multiplied by ``factor``. DiffCSP watches its validation loss (Jiao et al. 2023, their public code); here
    validation judges samples and happens seldom, so the loss of every epoch is watched.

    Args:
        factor: in (0, 1).
        patience: number of epochs without progress before the learning rate falls.
        minimum: the smallest learning rate.
    """

    factor: float = attrs.field(default=0.6, validator=within(0, 1, ends="neither"))
    patience: int = attrs.field(default=30, validator=at_least(0))
    minimum: float = attrs.field(default=1e-4, validator=at_least(0))


@attrs.frozen(kw_only=True)
class Training:
    """Settings of ``fit``. The defaults are those of the paper (Appendix I) or else of its authors' code.

    Paper and code differ in one point, where the code is followed: "AdamW with the default PyTorch parameters" would
    have a weight decay of 0.01 without amsgrad, but the code has 1e-12 (here 0) with amsgrad. ``epochs`` is a guess:
    the paper mentions early stopping, and the code trains until it is stopped.

    Args:
        epochs: passes over the training split.
        minutes: time after which training ends, validates and saves, even within an epoch; ``epochs`` still bounds it.
            The time is measured from the first step on, includes validations and compilation, and continues in a
            resumed run. The learning rate's schedule then follows the time. Such a run cannot be repeated exactly:
            another one, or a resumed one, has other learning rates. None by default.
        start_from: a run folder, checkpoint or export of another run with the same network, from which training
            starts. The statistics fitted to its training split (of the lattice, for instance) are kept. It is read
            once; a resumed run does not need it.
        start_with: the part that is taken from it: the ``weights`` that it samples with, which are trained with a new
            optimiser and a new average; or the ``state`` of its last checkpoint, that is the weights in training, the
            moments of the optimiser and the moving average, which goes on at once regardless of ``ema_start``. Steps
            and epochs start from 0 in both cases.
        batch_size: crystals per step, of all processes together.
        learning_rate, weight_decay: options of AdamW, which without weight decay is Adam.
        amsgrad: whether AdamW keeps the largest second moment (Reddi et al. 2018).
        ema_decay: decay of the moving average of the weights, per step.
        ema_start: epoch at which the average starts; before it, the weights in training are used.
        ema_warmup: whether the decay of the average's update n is at most (1 + n) / (10 + n): an average from the
            start that forgets the first weights. ``ema_start`` should then be 0.
        whole_batches: whether the crystals that fill no whole batch are left out (others in every epoch);
            otherwise the last batch of an epoch is smaller, but its step counts as much as the others.
        s_min: training times are in (s_min, 1].
        times: ``independent`` times, or ``stratified`` ones, which cover (s_min, 1] evenly in every batch: each of its
            B equal parts holds the time of one of the B crystals. The mean gradient is the same, with less variance.
        time_density: relative density of the times in as many equal bins of s, from s_min to 1; uniform by default.
            It weights the loss at time s, as the log-normal noise levels of EDM do (Karras et al. 2022). The loss in
            the log is the weighted one.
        importance_sampling: whether the gradient of each crystal is divided by ``time_density``, so that its mean is
            that of uniform times and the density changes the variance alone. The loss in the log is not divided.
        clip_value: largest entry of the gradient, by absolute value, before ``clip_norm``; none by default.
        clip_norm: largest gradient norm; none by default.
        plateau: when and how the learning rate falls; it stays by default.
        learning_rate_schedule: the learning rate as a function of the step and of the share of training that is done.
            A run that is prolonged (``epochs``, ``minutes``) is then at another point of the schedule; the steps that
            are done are not repeated.
        augmentation: another description of the crystals, drawn for every batch before its noise; none by default.
        max_pairs: largest number of ordered pairs of atoms in one forward and backward pass of a process; a larger
            batch is computed in pieces, with the same gradient. By default as many as half of the free memory holds,
            if the network can tell.
        precision: of matrix products: ``fp32``; ``tf32``, which only GPUs have, so that it silently means fp32 on a
            CPU; ``bf16`` in the network's layers and tf32 elsewhere; ``auto``, which is bf16 if the device multiplies
            it natively and else fp32.
        validate_every: epochs between validations; 0 never validates, and the last weights are the best.
        checkpoint_every: epochs between checkpoints (the end of training and an interruption always save one).
        seed: seed of the weights, the order and the noise.
    """

    epochs: int = attrs.field(default=4000, validator=at_least(1))
    minutes: float | None = attrs.field(default=None, validator=optional(above(0)))
    start_from: Path | None = None
    start_with: StartWith = attrs.field(default="weights", validator=one_of())
    batch_size: int = attrs.field(default=256, validator=at_least(1))
    learning_rate: float = attrs.field(default=1e-3, validator=within(0, 10, ends="high"))
    weight_decay: float = attrs.field(default=0.0, validator=within(0, 100))
    amsgrad: bool = True
    ema_decay: float = attrs.field(default=0.999, validator=within(0, 1, ends="low"))
    ema_start: int = attrs.field(default=500, validator=at_least(0))
    ema_warmup: bool = False
    whole_batches: bool = False
    s_min: float = attrs.field(default=1e-3, validator=within(0, 1, ends="neither"))
    times: Draw = attrs.field(default="independent", validator=one_of())
    time_density: tuple[float, ...] | None = attrs.field(default=None, validator=optional(each(above(0))))
    importance_sampling: bool = False
    clip_value: float | None = attrs.field(default=None, validator=optional(above(0)))
    clip_norm: float | None = attrs.field(default=None, validator=optional(above(0)))
    plateau: Plateau | None = None
    learning_rate_schedule: LearningRate | None = None
    augmentation: Augmentation | None = None
    max_pairs: int | None = attrs.field(default=None, validator=optional(at_least(1)))
    precision: Precision = attrs.field(default="tf32", validator=one_of())
    validate_every: int = attrs.field(default=100, validator=at_least(0))
    checkpoint_every: int = attrs.field(default=10, validator=at_least(1))
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        if self.time_density is not None and not self.time_density:
            raise KldmError("must be one number or more, got none", place="time_density")
        if self.importance_sampling and self.time_density is None:
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

    The model determines at every call what it means on its device (``used_precision``), because it may move.
    """
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    model.precision = precision
