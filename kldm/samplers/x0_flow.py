"""Sampling by steps that hold the network's estimate of the clean crystal: a good sample in some ten network calls."""

from collections.abc import Mapping

import attrs
import torch

from kldm.crystals import Crystals
from kldm.errors import KldmError, nearest
from kldm.interfaces import DiffusionProcess, Estimates, Latent, Prediction, Step
from kldm.registry import sampler
from kldm.samplers.stages import MOST_STEPS, OwnMove, Stage, StagedSampler
from kldm.validators import each, within

EARLIEST = 1e-3
"""The earliest time at which a process is asked to noise, the same as the default of training."""


@sampler("x0_flow.v1")
@attrs.frozen(kw_only=True)
class X0Flow(StagedSampler):
    """In every step the estimate of x_0 is held while the latent moves from s to r, exactly (DDIM, Song et al., 2021;
    for KLDM the same in phase space, see ``TrivializedTorus.flow_given``). The last step ends at the estimate.

    A process with ``flow_given`` and ``draw_given`` takes one of them. For a process that has only ``estimate``, the
    estimate is decoded to crystals and noised anew to r by the forward process. A process without ``estimate``, and one
    of tokens, whose estimate is a single type where ``denoise`` draws from the whole distribution, takes its own
    stochastic step.

    ``over`` > 0 moves a modality beyond r, to r (r / s)^over, while the network is told r: less noise than it expects,
    so that samples seek the modes of the law. 0 samples the law itself. Published samplers of crystal structure
    prediction seek modes too (see ``PredictorCorrector``).

    Args:
        steps: number of steps from s = 1; one network call each.
        s_min: unit time at which to stop.
        rho, land: see ``StagedSampler``; at s_min = 0 the last step lands anyway.
        over: by modality, such as ``coordinates``; 0 where it is not named. 2 to 4 are useful.
        stochastic: draw from p(x_r | x_s, x_0) (DDPM) instead of following the flow.

    Raises:
        KldmError: an option out of range; in ``check``, ``over`` names no modality of the model.
    """

    steps: int = attrs.field(default=10, validator=within(1, MOST_STEPS))
    over: Mapping[str, float] = attrs.field(factory=dict, validator=each(within(0, 100)))
    stochastic: bool = False

    def check(self, processes: Mapping[str, DiffusionProcess]) -> None:
        """Every process can take this sampler's steps; ``over`` must name modalities."""
        super().check(processes)
        for name in self.over:
            if name not in processes:
                raise KldmError("no such modality", place=f"sampler.over.{name}", remedy=nearest(name, processes))

    def stages(self, processes: Mapping[str, DiffusionProcess]) -> tuple[Stage, ...]:
        return (Stage("start", {name: self._move(process) for name, process in processes.items()}, self.over),)

    def _move(self, process: DiffusionProcess) -> str | OwnMove:
        wanted = "draw_given" if self.stochastic else "flow_given"
        if wanted in process.moves:
            return wanted
        tokens = any(channel.kind == "token" for channel in process.reads)
        return noised_anew if isinstance(process, Estimates) and not tokens else "denoise"


def noised_anew(process: DiffusionProcess, latent: Latent, prediction: Prediction, step: Step) -> Latent:
    """The estimate of x_0 with new noise of time r; at r = 0 the estimate itself."""
    assert isinstance(process, Estimates)
    clean = process.estimate(latent, prediction, step.s, step.layout)
    like = next(iter(clean.values()))
    atoms, crystals = step.layout.total, len(step.layout)
    blank = Crystals(
        like.new_zeros(atoms, 3), like.new_ones(crystals, 6), step.layout.owner.new_ones(atoms), step.layout
    )
    noisy = process.noise(process.decode(clean, blank), step.r.clamp(min=EARLIEST), step.rng).latent
    ends = step.r <= 0
    rows = {crystals: ends, atoms: step.layout.per_atom(ends)}
    return {name: torch.where(rows[len(value)].unsqueeze(-1), clean[name], value) for name, value in noisy.items()}
