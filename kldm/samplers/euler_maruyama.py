"""Euler-Maruyama sampling: one network call and one stochastic step per modality (KLDM, Algorithm 3)."""

from collections.abc import Mapping
from typing import Literal

import attrs

from kldm.interfaces import DiffusionProcess
from kldm.registry import sampler
from kldm.samplers.stages import Stage, StagedSampler
from kldm.validators import one_of


@sampler("euler_maruyama.v1")
@attrs.frozen(kw_only=True)
class EulerMaruyama(StagedSampler):
    """Every modality takes its stochastic reverse step from the same network call at time s.

    The torus always takes the exponential integrator that Algorithm 3 spells out; for the other modalities the
    rule is chosen here.

    Args:
        steps: N, the number of steps from s = 1; one network call each.
        s_min: unit time at which to stop.
        rho, land: see ``StagedSampler``.
        euclidean: ``euler_maruyama`` as in the paper, or the ``exponential`` integrator where a process has one.
    """

    euclidean: Literal["euler_maruyama", "exponential"] = attrs.field(default="euler_maruyama", validator=one_of())

    def stages(self, processes: Mapping[str, DiffusionProcess]) -> tuple[Stage, ...]:
        wanted = "exponential" if self.euclidean == "exponential" else "denoise"
        steps = {name: wanted if wanted in process.moves else "denoise" for name, process in processes.items()}
        return (Stage("start", steps),)
