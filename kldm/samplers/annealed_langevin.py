"""Annealed Langevin corrections between ancestral steps: the sampler of DiffCSP (Jiao et al., 2023, Algorithm 2)."""

from collections.abc import Mapping

import attrs

from kldm.interfaces import DiffusionProcess
from kldm.registry import sampler
from kldm.samplers.stages import Stage, StagedSampler
from kldm.validators import within


@sampler("annealed_langevin.v1")
@attrs.frozen(kw_only=True)
class AnnealedLangevin(StagedSampler):
    """At every level s: a Langevin move of the coordinates at s, then the ancestral step of every modality from s to r
    (the predictor-corrector of Song et al., 2021, with the corrector first).

    The ancestral step is a draw from p(x_r | x_s, x_0): ``exponential`` where a process has it, which for a
    variance-preserving one (eta = 1) is the step of DDPM, and ``denoise`` elsewhere. Unlike in ``PredictorCorrector``
    the predictor is stochastic and each process knows the length of its own correction; a process that uses a
    signal-to-noise ratio takes the default of ``Correction``.

    Args:
        steps: number of levels from s = 1; 1 + ``corrections`` network calls each.
        s_min: unit time at which to stop.
        rho, land: see ``StagedSampler``.
        corrections: Langevin moves at each level.
        corrected: modalities that make them.
    """

    corrections: int = attrs.field(default=1, validator=within(1, 1000))
    corrected: tuple[str, ...] = ("coordinates",)

    def stages(self, processes: Mapping[str, DiffusionProcess]) -> tuple[Stage, ...]:
        correct = Stage("start", dict.fromkeys(self.corrected, "correct"))
        steps = {
            name: "exponential" if "exponential" in process.moves else "denoise" for name, process in processes.items()
        }
        return (*[correct] * self.corrections, Stage("start", steps))
