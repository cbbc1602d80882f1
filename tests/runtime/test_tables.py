"""Tables: made once for their arguments, whatever mode they are first asked for in."""

import torch
from torch import Tensor

from kldm.runtime.tables import table


def test_a_table_is_made_once_for_its_arguments_and_outlives_inference() -> None:
    made: list[int] = []

    @table
    def numbers(count: int, dtype: torch.dtype) -> Tensor:
        made.append(count)
        return torch.arange(count, dtype=dtype)

    with torch.inference_mode():
        first = numbers(3, torch.float32)
    assert numbers(3, torch.float32) is first
    assert numbers(3, torch.float64).dtype == torch.float64
    assert numbers(4, torch.float32).tolist() == [0, 1, 2, 3]
    assert made == [3, 3, 4]
    weight = torch.ones(3, requires_grad=True)
    (weight * first).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 1, 2]
