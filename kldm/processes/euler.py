"""The step of flow matching: forward Euler along the predicted velocity, with FlowMM's inference anti-annealing."""

from torch import Tensor

from kldm.interfaces import Step


def stride(step: Step, anti_annealing: float) -> Tensor:
    """[B], the factor of the velocity in a step: (s - r) (1 + a t), with the flow time t = 1 - s at its start.

    a = ``anti_annealing`` = 0 is Euler's method for dx/dt = v. With a > 0 (Miller et al., 2024) the factors of all
    steps add up to about 1 + a / 2 instead of 1: the flow is no longer that of the velocity, and the marginals of the
    path no longer those of the training. It is a published heuristic that draws samples closer to what the network
    predicts near t = 1. With not many more steps than a, the last ones overshoot.
    """
    return (step.s - step.r) * (1 + anti_annealing * (1 - step.s))
