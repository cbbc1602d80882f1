"""Learning-rate schedules: functions of the step and of the fraction of training done. Importing registers them.

All are multiplied by a linear warm-up, min(1, (step + 1) / warmup_steps).
"""

import math
from typing import Literal

import attrs

from kldm.registry import learning_rate
from kldm.validators import at_least, one_of, within

Shape = Literal["linear", "cosine", "sqrt"]
"""The decay of a learning rate for u from 0 to 1: 1 - u, (1 + cos(pi u)) / 2, 1 - sqrt(u)."""


@learning_rate("constant.v1")
@attrs.frozen(kw_only=True)
class Constant:
    """Warm-up, then a constant learning rate.

    Args:
        warmup_steps: number of steps in which the learning rate rises linearly from almost 0.
    """

    warmup_steps: int = attrs.field(default=0, validator=at_least(0))

    def factor(self, step: int, progress: float) -> float:
        return _warmed(step, self.warmup_steps)


@learning_rate("cosine_decay.v1")
@attrs.frozen(kw_only=True)
class CosineDecay:
    """Warm-up, and half a cosine over the whole training: floor + (1 - floor) (1 + cos(pi progress)) / 2 (Loshchilov
    and Hutter 2017, without restarts).

    Args:
        warmup_steps: see ``Constant``.
        floor: factor at the end.
    """

    warmup_steps: int = attrs.field(default=0, validator=at_least(0))
    floor: float = attrs.field(default=0.0, validator=within(0, 1))

    def factor(self, step: int, progress: float) -> float:
        return _warmed(step, self.warmup_steps) * _decayed("cosine", progress, self.floor)


@learning_rate("warmup_stable_decay.v1")
@attrs.frozen(kw_only=True)
class WarmupStableDecay:
    """Warm-up, a constant learning rate, and a decay in the last part of training (WSD; Hu et al. 2024, Haegele et al.
    2024, whose best decay is 1 - sqrt(u)).

    With ``decay = 0`` a run is a trunk that can be prolonged for ever. A branch with ``decay = 1`` and no warm-up,
    started from the trunk's state (``training.start_from``), decays a copy of it.

    Args:
        warmup_steps: see ``Constant``.
        decay: fraction of training, at its end, in which the learning rate falls.
        shape: of the decay, with u from 0 to 1 in that time: ``linear`` 1 - u, ``cosine`` (1 + cos(pi u)) / 2, ``sqrt``
            1 - sqrt(u).
        floor: factor at the end.
    """

    warmup_steps: int = attrs.field(default=0, validator=at_least(0))
    decay: float = attrs.field(default=0.2, validator=within(0, 1))
    shape: Shape = attrs.field(default="sqrt", validator=one_of())
    floor: float = attrs.field(default=0.0, validator=within(0, 1))

    def factor(self, step: int, progress: float) -> float:
        u = max(0.0, 1 - (1 - progress) / self.decay) if self.decay else 0.0
        return _warmed(step, self.warmup_steps) * _decayed(self.shape, u, self.floor)


def _warmed(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def _decayed(shape: Shape, u: float, floor: float) -> float:
    factor = {"linear": 1 - u, "cosine": (1 + math.cos(math.pi * u)) / 2, "sqrt": 1 - math.sqrt(u)}[shape]
    return floor + (1 - floor) * factor
