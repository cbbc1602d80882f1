"""The moving average of the weights that a model in training is judged and sampled by."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

M = TypeVar("M", bound=nn.Module)


class MovingAverage(Generic[M]):
    """w <- decay w + (1 - decay) w_model, from the weights of the first update; buffers are the model's.

    torch's ``AveragedModel`` with the number of updates on the host: there it is read from the device in every update,
    which waits for all that a GPU still has to do.

    Args:
        model: on its device; it is copied.
        decay: per update, in [0, 1).
        warmup: whether the decay of update n, counted from 0, is at most (1 + n) / (10 + n), so that the average of a
            short run forgets where it began.

    Attributes:
        module: the model with the averaged weights.
        updates: how often it was updated; the weights of ``module`` mean nothing before the first time.
    """

    def __init__(self, model: M, decay: float, *, warmup: bool = False) -> None:
        self.module: M = copy.deepcopy(model).requires_grad_(False)
        self.updates = 0
        self._decay, self._warmup = decay, warmup

    @torch.no_grad()
    def update(self, model: M) -> None:
        ours, theirs = ([weight.detach() for weight in each.parameters()] for each in (self.module, model))
        if self.updates:
            most = (1 + self.updates) / (10 + self.updates) if self._warmup else self._decay
            mix = get_ema_multi_avg_fn(min(self._decay, most))  # type: ignore[no-untyped-call]
            mix(ours, theirs, None)
        else:
            torch._foreach_copy_(ours, theirs)
        for mine, other in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(other)
        self.updates += 1
