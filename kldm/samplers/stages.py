"""The one loop behind every sampler: a list of stages, each one network call followed by one move per modality."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals
from kldm.errors import KldmError, nearest
from kldm.interfaces import Correction, DiffusionProcess, GenerativeModel, Latent, Prediction, Step
from kldm.samplers.graphs import Latents, stepping
from kldm.validators import one_of, within

MOST_STEPS = 10**6
"""The largest number of steps, as the times of all are made beforehand; a thousand is usual."""

OwnMove = Callable[[DiffusionProcess, Latent, Prediction, Step], Latent]
"""A move that a sampler defines itself, and can make with any process."""


@attrs.frozen
class Stage:
    """One network call and the moves that use it.

    Attributes:
        at: call the network at the ``start`` of the step (time s) or at its ``end`` (time r).
        moves: what each modality does, by the name of a move that its process declares, or as a function of the
            sampler's own; a modality that is not named is not moved.
        over: by modality, how far its move goes beyond r, to r (r / s)^over; the network is still told r. By default 0.
        correction: options of its Langevin moves.
    """

    at: Literal["start", "end"] = attrs.field(validator=one_of())
    moves: Mapping[str, str | OwnMove]
    over: Mapping[str, float] = attrs.field(factory=dict)
    correction: Correction = attrs.field(factory=Correction)


def require(processes: Mapping[str, DiffusionProcess], modality: str, move: str | OwnMove) -> None:
    """Raises ``KldmError`` where the modality is absent or its process does not declare the move."""
    if modality not in processes:
        remedy = nearest(modality, processes) or f"the model has {', '.join(sorted(processes))}"
        raise KldmError(
            f"the sampler moves {modality!r}, which the model does not have", place="sampler", remedy=remedy
        )
    moves = processes[modality].moves
    if isinstance(move, str) and move not in moves:
        raise KldmError(
            f"{type(processes[modality]).__name__} has no move {move!r}, which the sampler needs",
            place=f"model.{modality}",
            remedy=nearest(move, moves, likeness=0.75) or "choose another sampler or process",
        )


def require_all(processes: Mapping[str, DiffusionProcess], stages: Sequence[Stage]) -> None:
    """Raises ``KldmError`` where a modality lacks a move of the stages."""
    for stage in stages:
        for modality, move in stage.moves.items():
            require(processes, modality, move)


def time_grid(steps: int, s_min: float, like: Tensor, rho: float = 1.0) -> Tensor:
    """[steps + 1] times from 1 down to s_min, (1 + i / steps (s_min^(1 / rho) - 1))^rho (Karras et al., 2022, Eq. 5).

    Uniform for rho = 1; a larger one puts more of the steps near s_min. On the device and of the type of ``like``.
    """
    return torch.linspace(1.0, s_min ** (1 / rho), steps + 1, dtype=torch.float64).pow(rho).to(like)


@torch.no_grad()
def integrate(
    stages: Sequence[Stage],
    times: Tensor,
    model: GenerativeModel,
    given: Crystals,
    rng: torch.Generator,
    progress: Callable[[int], None] | None = None,
    last: Sequence[Stage] | None = None,
) -> Crystals:
    """From the prior to crystals.

    All crystals of a step have the same time, one number expanded to [B].

    Args:
        stages: what to do in every step, in order.
        times: [steps + 1] falling unit times, on the device of ``given``.
        model: processes and network.
        given: layout and conditioning.
        rng: source of all randomness.
        progress: called with the number of steps just done.
        last: what to do in the last step; by default the same.

    Raises:
        KldmError: a process lacks a move.
    """
    layout, processes = given.layout, model.processes
    require_all(processes, (*stages, *(last or ())))

    def advance(
        latents: Latents, start: Tensor, end: Tensor, rng: torch.Generator, stages: Sequence[Stage] = stages
    ) -> Latents:
        s, r = start.expand(len(layout)), end.expand(len(layout))
        latents = dict(latents)
        for stage in stages:
            now = s if stage.at == "start" else r
            step = Step(s=s, r=r, now=now, layout=layout, rng=rng, correction=stage.correction)
            predictions = model.predict(latents, step.now, layout)
            for name, move in stage.moves.items():
                over = stage.over.get(name, 0.0)
                own_step = attrs.evolve(step, r=r * (r / s) ** over) if over else step
                apply = processes[name].moves[move] if isinstance(move, str) else partial(move, processes[name])
                latents[name] = apply(latents[name], predictions[name], own_step)
        return latents

    latents: Latents = {name: process.prior(given, rng) for name, process in processes.items()}
    pairs = list(pairwise(times))
    alike = pairs if last is None else pairs[:-1]
    with stepping(advance, rng, given.device) as step:
        for start, end in alike:
            latents = step(latents, start, end)
            if progress is not None:
                progress(1)
    if last is not None:
        latents = advance(latents, *pairs[-1], rng, last)
        if progress is not None:
            progress(1)
    crystals = given
    for name, process in processes.items():
        crystals = process.decode(latents[name], crystals)
    return crystals


@attrs.frozen(kw_only=True)
class StagedSampler(ABC):
    """A sampler that is a list of stages on a grid of times from s = 1.

    Args:
        steps: number of steps.
        s_min: unit time at which to stop.
        rho: how the times are spaced, uniformly for 1; see ``time_grid``.
        land: whether the last step takes every process that can to its estimate of the clean latent (if s_min is 0),
            instead of leaving the noise of its own last step in the result. For KLDM's Euler-Maruyama that noise is
            0.012 rad for every coordinate at 50 steps. False is as published.
    """

    steps: int = attrs.field(default=1000, validator=within(1, MOST_STEPS))
    s_min: float = attrs.field(default=0.0, validator=within(0, 1, ends="low"))
    rho: float = attrs.field(default=1.0, validator=within(0, 100, ends="high"))
    land: bool = False

    @abstractmethod
    def stages(self, processes: Mapping[str, DiffusionProcess]) -> tuple[Stage, ...]:
        """What is done in every step."""

    def check(self, processes: Mapping[str, DiffusionProcess]) -> None:
        """Raises ``KldmError`` where a process lacks a move of the stages."""
        require_all(processes, self.stages(processes))

    def sample(
        self,
        model: GenerativeModel,
        given: Crystals,
        rng: torch.Generator,
        progress: Callable[[int], None] | None = None,
    ) -> Crystals:
        times = time_grid(self.steps, self.s_min, given.fractional, self.rho)
        stages = self.stages(model.processes)
        last = self._last(stages, model.processes)
        return integrate(stages, times, model, given, rng, progress, None if last == stages else last)

    def _last(self, stages: tuple[Stage, ...], processes: Mapping[str, DiffusionProcess]) -> tuple[Stage, ...]:
        """The stages of the last step. At s = 0 there is no noise, and nothing to correct."""

        def stays(name: str, move: str | OwnMove) -> bool:
            return isinstance(move, str) and processes[name].moves[move].ends == "now"

        if self.s_min == 0:
            stages = tuple(
                stage
                for stage in stages
                if stage.at == "start" or not all(stays(*move) for move in stage.moves.items())
            )
        if not self.land:
            return stages
        return tuple(
            attrs.evolve(
                stage,
                moves={
                    name: "flow_given" if not stays(name, move) and "flow_given" in processes[name].moves else move
                    for name, move in stage.moves.items()
                },
            )
            for stage in stages
        )
