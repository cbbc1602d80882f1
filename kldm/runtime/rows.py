"""Takes and sums rows by index, forward and backward, in a form that torch.compile orders correctly.

The compiler of torch 2.13 may move the use of a sum before the sum itself: when it fuses operations, it overlooks that
the sum writes into existing memory. Gradients are then incomplete, without an error. While compiling, the sums here are
therefore opaque custom operators; otherwise they are those of torch.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]``: [M, ...] and int64 [N] to [N, ...]."""
    if torch.compiler.is_compiling() and values.requires_grad:
        taken: Tensor = _Take.apply(values, index)  # type: ignore[no-untyped-call]
        return taken
    return values.index_select(0, index)


def add_rows(values: Tensor, index: Tensor, rows: int) -> Tensor:
    """[N, ...] and int64 [N] in 0..rows - 1 to [rows, ...]: for each row the sum of the values with its index."""
    if torch.compiler.is_compiling():
        added: Tensor = _Add.apply(values, index, rows)  # type: ignore[no-untyped-call]
        return added
    return values.new_zeros((rows, *values.shape[1:])).index_add_(0, index, values)


class _Take(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = values.shape[0]
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum(gradient, *ctx.saved_tensors, ctx.rows), None


class _Add(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(index)
        added: Tensor = _sum(values, index, rows)
        return added

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return gradient.index_select(0, index), None, None


@torch.library.custom_op("kldm::sum_rows", mutates_args=())
def _sum(values: Tensor, index: Tensor, rows: int) -> Tensor:
    return values.new_zeros((rows, *values.shape[1:])).index_add_(0, index, values)


@_sum.register_fake
def _(values: Tensor, index: Tensor, rows: int) -> Tensor:
    return values.new_empty((rows, *values.shape[1:]))
