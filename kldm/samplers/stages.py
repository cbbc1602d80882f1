"""The one loop behind every sampler: a list of stages, each one network call followed by one move per modality."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals
from kldm.errors import KldmError
from kldm.interfaces import (
    Correction,
    Corrects,
    DiffusionProcess,
    Flows,
    GenerativeModel,
    Integrates,
    Latent,
    Prediction,
    Predicts,
    Step,
)
from kldm.samplers.graphs import Latents, stepping
from kldm.samplers.settings import below_one, number_of_steps

Move = Literal["denoise", "exponential", "flow", "predict", "correct"]

CAPABILITY: Mapping[Move, type] = {
    "denoise": DiffusionProcess,
    "exponential": Integrates,
    "flow": Flows,
    "predict": Predicts,
    "correct": Corrects,
}


@attrs.frozen
class Stage:
    """One network call and the moves that use it.

    Attributes:
        at: call the network at the ``start`` of the step (time s) or at its ``end`` (time r).
        moves: the move of each modality; a modality that is not named stays where it is.
    """

    at: Literal["start", "end"]
    moves: Mapping[str, Move]


def able(process: DiffusionProcess, move: Move) -> bool:
    """Whether the process has this move (every process can ``denoise``)."""
    return move == "denoise" or isinstance(process, CAPABILITY[move])


def require(processes: Mapping[str, DiffusionProcess], modality: str, move: Move) -> None:
    """Raises ``KldmError`` where the modality is absent or lacks the move."""
    if modality not in processes:
        raise KldmError(
            f"the sampler wants to {move} {modality!r}", remedy=f"the model has {', '.join(sorted(processes))}"
        )
    if not able(processes[modality], move):
        kind = type(processes[modality]).__name__
        raise KldmError(
            f"the sampler wants to {move} {modality!r}, but {kind} has no method {move!r}",
            place=f"model.{modality}",
            remedy="choose another sampler or process",
        )


def time_grid(steps: int, s_min: float, like: Tensor) -> Tensor:
    """[steps + 1] times from 1 down to s_min, uniform, on the device and of the type of ``like``."""
    return torch.linspace(1.0, s_min, steps + 1, dtype=torch.float64).to(like)


@torch.no_grad()
def integrate(
    stages: Sequence[Stage],
    times: Tensor,
    model: GenerativeModel,
    given: Crystals,
    rng: torch.Generator,
    correction: Correction | None = None,
    progress: Callable[[int], None] | None = None,
) -> Crystals:
    """From the prior to crystals.

    All crystals of a step have the same time, one number expanded to [B].

    Args:
        stages: what to do in every step, in order.
        times: [steps + 1] falling unit times, on the device of ``given``.
        model: processes and network.
        given: layout and conditioning.
        rng: source of all randomness.
        correction: options of the ``correct`` moves.
        progress: told the number of steps just done.
    """
    layout, processes = given.layout, model.processes
    options = correction or Correction()

    def advance(latents: Latents, start: Tensor, end: Tensor, rng: torch.Generator) -> Latents:
        s, r = start.expand(len(layout)), end.expand(len(layout))
        latents = dict(latents)
        for stage in stages:
            step = Step(s=s, r=r, now=s if stage.at == "start" else r, layout=layout, rng=rng)
            predictions = model.predict(latents, step.now, layout)
            for name, move in stage.moves.items():
                latents[name] = _moved(processes[name], move, latents[name], predictions[name], step, options)
        return latents

    latents: Latents = {name: process.prior(given, rng) for name, process in processes.items()}
    with stepping(advance, rng, given.device) as step:
        for start, end in pairwise(times):
            latents = step(latents, start, end)
            if progress is not None:
                progress(1)
    crystals = given
    for name, process in processes.items():
        crystals = process.decode(latents[name], crystals)
    return crystals


@attrs.frozen(kw_only=True)
class StagedSampler(ABC):
    """A sampler that is a list of stages on the uniform grid from s = 1.

    Args:
        steps: number of steps.
        s_min: unit time at which to stop.
    """

    steps: int = attrs.field(default=1000, validator=number_of_steps)
    s_min: float = attrs.field(default=0.0, validator=below_one)

    @abstractmethod
    def check(self, processes: Mapping[str, DiffusionProcess]) -> None:
        """Raises ``KldmError`` where a process lacks a move."""

    @abstractmethod
    def stages(self, processes: Mapping[str, DiffusionProcess]) -> tuple[Stage, ...]:
        """What is done in every step."""

    @property
    def correction(self) -> Correction:
        """Options of the ``correct`` moves."""
        return Correction()

    def sample(
        self,
        model: GenerativeModel,
        given: Crystals,
        rng: torch.Generator,
        progress: Callable[[int], None] | None = None,
    ) -> Crystals:
        times = time_grid(self.steps, self.s_min, given.fractional)
        return integrate(self.stages(model.processes), times, model, given, rng, self.correction, progress)


def _moved(
    process: DiffusionProcess, move: Move, latent: Latent, prediction: Prediction, step: Step, correction: Correction
) -> Latent:
    if move == "correct" and isinstance(process, Corrects):
        return process.correct(latent, prediction, step, correction)
    if move == "predict" and isinstance(process, Predicts):
        return process.predict(latent, prediction, step)
    if move == "flow" and isinstance(process, Flows):
        return process.flow(latent, prediction, step)
    if move == "exponential" and isinstance(process, Integrates):
        return process.exponential(latent, prediction, step)
    return process.denoise(latent, prediction, step)
