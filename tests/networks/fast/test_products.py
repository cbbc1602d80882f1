"""Linear maps by oneDNN, or by torch: the same numbers."""

from typing import Any

import pytest
import torch
from torch.nn.functional import linear, silu
from torch.utils._python_dispatch import TorchDispatchMode

from kldm.networks.fast import products
from kldm.networks.fast.products import affine
from kldm.testing.crystals import generator
from tests.networks.twins import relative


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("activated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 37])
def test_affine(rows: int, dtype: torch.dtype, activated: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a block of columns of a wider matrix, as the networks have it, and of a transposed one."""
    if not onednn:
        monkeypatch.setattr(products, "_has_onednn", lambda: False)
    rng = generator(0)
    values, wide, bias = (torch.randn(shape, generator=rng) for shape in ((rows, 24), (16, 60), (16,)))
    for weight in (wide[:, 5:29], wide[:, :24].t().contiguous().t()):
        for shift in (bias, None):
            rounded = [None if tensor is None else tensor.to(dtype) for tensor in (values, weight, shift)]
            expected = linear(*(None if tensor is None else tensor.double() for tensor in rounded))  # type: ignore[arg-type]
            expected = silu(expected) if activated else expected
            found = affine(*rounded, activated=activated)  # type: ignore[arg-type]
            assert found.dtype == dtype
            assert found.shape == (rows, 16)
            bound = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 5e-3}[dtype]
            assert not rows or relative(found.double(), expected) < bound


def test_onednn_gets_no_matrix_with_gaps() -> None:
    """It would take a thousand times as long."""
    given: list[torch.Tensor] = []

    class Given(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
        def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
            if func is torch.ops.mkldnn._linear_pointwise.default:
                given.extend(args[:2])
            return func(*args, **(kwargs or {}))

    wide = torch.randn(16, 60, generator=generator(0))
    with Given():  # type: ignore[no-untyped-call]
        affine(wide[:, :8], wide[:, 8:16])
        affine(wide, wide)
        affine(wide, wide.t().contiguous().t())
    assert len(given) == 6 or not products._has_onednn()
    assert all(tensor.is_contiguous() or tensor.t().is_contiguous() for tensor in given)


def test_affine_is_differentiated_where_it_is_asked_for() -> None:
    values = torch.randn(5, 8, generator=generator(0))
    weight = torch.randn(3, 8, generator=generator(0), requires_grad=True)
    (found,) = torch.autograd.grad(affine(values, weight, activated=True).sum(), weight)
    (expected,) = torch.autograd.grad(silu(values @ weight.t()).sum(), weight)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        assert not affine(values, weight).requires_grad
