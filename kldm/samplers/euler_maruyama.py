"""Euler-Maruyama sampling: one network call and one stochastic step per modality (KLDM, Algorithm 3)."""

from collections.abc import Callable, Mapping
from typing import Literal

import attrs
import torch

from kldm.crystals import Crystals
from kldm.interfaces import DiffusionProcess, GenerativeModel
from kldm.registry import sampler
from kldm.samplers.settings import below_one, one_of, positive
from kldm.samplers.stages import Stage, able, integrate, time_grid


@sampler("euler_maruyama.v1")
@attrs.frozen(kw_only=True)
class EulerMaruyama:
    """Every modality takes its stochastic reverse step from the same network call at time s.

    The torus always takes the exponential integrator that Algorithm 3 spells out; for the other modalities the
    rule is chosen here.

    Args:
        steps: N, the number of steps on the uniform grid from s = 1; one network call each.
        s_min: unit time at which to stop.
        euclidean: ``euler_maruyama`` as in the paper, or the ``exponential`` integrator where a process has one.
    """

    steps: int = attrs.field(default=1000, validator=positive)
    s_min: float = attrs.field(default=0.0, validator=below_one)
    euclidean: Literal["euler_maruyama", "exponential"] = attrs.field(
        default="euler_maruyama", validator=one_of("euler_maruyama", "exponential")
    )

    def check(self, processes: Mapping[str, DiffusionProcess]) -> None:
        """Every process can take this sampler's steps."""

    def stages(self, processes: Mapping[str, DiffusionProcess]) -> tuple[Stage, ...]:
        exponential = self.euclidean == "exponential"
        return (
            Stage(
                "start",
                {
                    name: "exponential" if exponential and able(process, "exponential") else "denoise"
                    for name, process in processes.items()
                },
            ),
        )

    def sample(
        self,
        model: GenerativeModel,
        given: Crystals,
        rng: torch.Generator,
        progress: Callable[[int], None] | None = None,
    ) -> Crystals:
        times = time_grid(self.steps, self.s_min, given.fractional)
        return integrate(self.stages(model.processes), times, model, given, rng, progress=progress)
