"""The moving average of the weights, with which a model in training is validated and sampled."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

M = TypeVar("M", bound=nn.Module)


class MovingAverage(Generic[M]):
    """w <- decay w + (1 - decay) w_model, from the weights of the first update; buffers are the model's.

    Unlike torch's ``AveragedModel`` it counts its updates on the host. torch reads the count from the device in every
    update, which waits for the GPU.

    Args:
        model: on its device; it is copied.
        decay: per update, in [0, 1).
        warmup: whether the decay of update n, counted from 0, is at most (1 + n) / (10 + n), so that the average of a
            short run forgets the first weights.

    Attributes:
        module: the model with the averaged weights.
        updates: number of updates; the weights of ``module`` mean nothing before the first one.
    """

    def __init__(self, model: M, decay: float, *, warmup: bool = False) -> None:
        self.module: M = copy.deepcopy(model).requires_grad_(False)
        self.updates = 0
        self._decay, self._warmup = decay, warmup

    @torch.no_grad()
    def update(self, model: M) -> None:
        averages, weights = ([weight.detach() for weight in module.parameters()] for module in (self.module, model))
        if self.updates:
            most = (1 + self.updates) / (10 + self.updates) if self._warmup else self._decay
            mix = get_ema_multi_avg_fn(min(self._decay, most))  # type: ignore[no-untyped-call]
            mix(averages, weights, None)
        else:
            torch._foreach_copy_(averages, weights)
        for copied, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            copied.copy_(buffer)
        self.updates += 1
