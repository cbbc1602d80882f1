"""Samplers: how the processes are stepped from noise to crystals."""

from kldm.samplers.annealed_langevin import AnnealedLangevin
from kldm.samplers.euler_maruyama import EulerMaruyama
from kldm.samplers.graphs import replaying
from kldm.samplers.predictor_corrector import PredictorCorrector
from kldm.samplers.probability_flow import ProbabilityFlow
from kldm.samplers.stages import Stage, integrate
from kldm.samplers.x0_flow import X0Flow

__all__ = [
    "AnnealedLangevin",
    "EulerMaruyama",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Stage",
    "X0Flow",
    "integrate",
    "replaying",
]
