"""Sampling along the probability flow: deterministic once the prior is drawn."""

from collections.abc import Callable, Mapping

import attrs
import torch

from kldm.crystals import Crystals
from kldm.interfaces import DiffusionProcess, GenerativeModel
from kldm.registry import sampler
from kldm.samplers.settings import below_one, positive
from kldm.samplers.stages import Stage, integrate, require, time_grid


@sampler("probability_flow.v1")
@attrs.frozen(kw_only=True)
class ProbabilityFlow:
    """The ordinary differential equation with the marginals of the reverse SDE (Song et al. 2021, Eq. 13).

    Args:
        steps: number of steps on the uniform grid from s = 1; one network call each.
        s_min: unit time at which to stop.
    """

    steps: int = attrs.field(default=1000, validator=positive)
    s_min: float = attrs.field(default=0.0, validator=below_one)

    def check(self, processes: Mapping[str, DiffusionProcess]) -> None:
        """Every process needs ``flow``."""
        for name in processes:
            require(processes, name, "flow")

    def stages(self, processes: Mapping[str, DiffusionProcess]) -> tuple[Stage, ...]:
        return (Stage("start", dict.fromkeys(processes, "flow")),)

    def sample(
        self,
        model: GenerativeModel,
        given: Crystals,
        rng: torch.Generator,
        progress: Callable[[int], None] | None = None,
    ) -> Crystals:
        times = time_grid(self.steps, self.s_min, given.fractional)
        return integrate(self.stages(model.processes), times, model, given, rng, progress=progress)
