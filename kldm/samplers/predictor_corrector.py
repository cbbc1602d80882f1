"""Predictor-corrector sampling (KLDM, Algorithm 4, after Rozet & Louppe 2023), in both published orders."""

from collections.abc import Mapping
from typing import Literal

import attrs

from kldm.interfaces import Correction, DiffusionProcess
from kldm.registry import sampler
from kldm.samplers.stages import Stage, StagedSampler
from kldm.validators import one_of, within


@sampler("predictor_corrector.v1")
@attrs.frozen(kw_only=True)
class PredictorCorrector(StagedSampler):
    """A deterministic predictor from s to r and Langevin corrections at a fixed time.

    ``correct_then_predict`` is what the authors' code does, and so what the published numbers come from: correct
    every modality that can at time s, then predict all from s to r. ``predict_then_correct`` is Algorithm 4: predict
    the coordinates from s to r, while the other modalities take one stochastic step, then with a network call at r
    correct the coordinates, except at r = 0, where there is no noise to correct. (Algorithm 4 as printed steps the
    other modalities with the second call, made at r while they are still at s; with an exact network that diverges at
    the last step, so the first call serves them here.)

    It seeks modes and does not sample the model's law: a correction of the published size depends on the state, and a
    correction that moves the positions too makes every step move them twice.

    Args:
        steps: N, the number of steps from s = 1.
        s_min: unit time at which to stop.
        order: which of the two orders.
        rho, land: see ``StagedSampler``.
        tau: signal-to-noise ratio of a correction, delta = tau / score^2.
        step_size: whether that is the mean of ``observed`` squares, as published, or the ``expected`` one; see
            ``Correction``.
        correct_positions: whether a correction of velocities moves the positions too.
        corrections: corrections per step, one network call each, in addition to the predictor's.
        corrected: modalities that are corrected; by default every one that can (``correct_then_predict``) or
            only the coordinates (``predict_then_correct``). Those not corrected take a stochastic step.
    """

    order: Literal["correct_then_predict", "predict_then_correct"] = attrs.field(
        default="correct_then_predict", validator=one_of()
    )
    tau: float = attrs.field(default=0.25, validator=within(0, 100, ends="high"))
    step_size: Literal["observed", "expected"] = attrs.field(default="observed", validator=one_of())
    correct_positions: bool = True
    corrections: int = attrs.field(default=1, validator=within(1, 1000))
    corrected: tuple[str, ...] | None = None

    def stages(self, processes: Mapping[str, DiffusionProcess]) -> tuple[Stage, ...]:
        corrected = self._corrected(processes)
        options = Correction(tau=self.tau, positions=self.correct_positions, step_size=self.step_size)
        at: Literal["start", "end"] = "start" if self.order == "correct_then_predict" else "end"
        correct = [Stage(at, dict.fromkeys(corrected, "correct"), correction=options)] * self.corrections
        others = {name: "denoise" for name in processes if name not in corrected}
        predict = Stage("start", {**dict.fromkeys(corrected, "predict"), **others})
        return (*correct, predict) if self.order == "correct_then_predict" else (predict, *correct)

    def _corrected(self, processes: Mapping[str, DiffusionProcess]) -> tuple[str, ...]:
        if self.corrected is not None:
            return self.corrected
        if self.order == "predict_then_correct":
            return ("coordinates",)
        return tuple(name for name, process in processes.items() if {"predict", "correct"} <= process.moves.keys())
