"""Sampling along the probability flow: deterministic once the prior is drawn."""

from collections.abc import Mapping

import attrs

from kldm.interfaces import DiffusionProcess
from kldm.registry import sampler
from kldm.samplers.stages import Stage, StagedSampler


@sampler("probability_flow.v1")
@attrs.frozen(kw_only=True)
class ProbabilityFlow(StagedSampler):
    """The ordinary differential equation with the marginals of the reverse SDE (Song et al. 2021, Eq. 13).

    Args:
        steps: number of steps from s = 1; one network call each.
        s_min: unit time at which to stop.
        rho, land: see ``StagedSampler``.
    """

    def stages(self, processes: Mapping[str, DiffusionProcess]) -> tuple[Stage, ...]:
        return (Stage("start", dict.fromkeys(processes, "flow")),)
