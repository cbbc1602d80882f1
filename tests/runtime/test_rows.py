"""Rows by index: torch's own sums, and their gradients through a compiler."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kldm.runtime.rows import add_rows, take_rows

INDEX = torch.tensor([2, 0, 2, 2, 1])


def taken(values: Tensor) -> Tensor:
    return take_rows(values, INDEX).square()


def added(values: Tensor) -> Tensor:
    return add_rows(values.square(), INDEX, 4)


@pytest.mark.parametrize(("function", "rows"), [(taken, 3), (added, 5)])
def test_two_derivatives(function: Callable[[Tensor], Tensor], rows: int) -> None:
    values = torch.randn(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(function, values)
    assert torch.autograd.gradgradcheck(function, values)


def test_a_row_without_values_is_zero() -> None:
    assert add_rows(torch.ones(5, 1), INDEX, 4).squeeze(1).tolist() == [1, 1, 3, 0]


@pytest.mark.parametrize(("function", "rows"), [(taken, 3), (added, 5)])
def test_a_compiler_sees_no_sum(function: Callable[[Tensor], Tensor], rows: int) -> None:
    torch._dynamo.reset()
    codes: list[str] = []

    def note(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        codes.append(graph.code)
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(function, backend=aot_autograd(fw_compiler=note), fullgraph=True)
    plain = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    values = plain.detach().clone().requires_grad_()
    torch.testing.assert_close(compiled(values), function(plain))
    torch.autograd.backward([compiled(values).cos().sum(), function(plain).cos().sum()])
    torch.testing.assert_close(values.grad, plain.grad)
    assert len(codes) == 2, "forward and backward"
    assert sum(code.count("kldm.sum_rows") for code in codes) == 1
    assert not any("index_add" in code or "index_put" in code or "scatter" in code for code in codes)
    torch._dynamo.reset()
