"""Linear maps, by oneDNN where that is faster."""

import platform
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear, silu


def affine(values: Tensor, weight: Tensor, bias: Tensor | None = None, *, activated: bool = False) -> Tensor:
    """W x + b of every row x of [R, I], and silu of that if ``activated``: [R, O].

    oneDNN computes what is not differentiated on x86 processors. Its products of float32 are a fifth faster than
    those of the library behind torch's, measured with AVX-512 on an AMD EPYC; confined to AVX2 they are not slower. It
    adds the bias and applies silu as it writes.
    """
    recorded = differentiated(*(tensor for tensor in (values, weight, bias) if tensor is not None))
    if _is_supported(values) and _has_onednn() and not recorded:
        how = "swish" if activated else "none"
        result: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(values), _dense(weight), bias, how, [], None)
        return result
    result = linear(values, weight, bias)
    return silu(result, inplace=not recorded) if activated else result


def differentiated(*tensors: Tensor) -> bool:
    """Whether a function of these tensors will be asked for gradients."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _is_supported(values: Tensor) -> bool:
    """Whether oneDNN takes these values: no doubles, no empty matrices, and no compiler is tracing."""
    known = values.device.type == "cpu" and values.dtype in (torch.float32, torch.bfloat16)
    return known and values.numel() > 0 and not torch.compiler.is_compiling()


def _dense(matrix: Tensor) -> Tensor:
    """The matrix without gaps between rows or columns; with gaps oneDNN is a thousand times slower."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


@cache
def _has_onednn() -> bool:
    """Whether torch has the private linear map that its own compiler calls."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return x86 and available and hasattr(torch.ops.mkldnn, "_linear_pointwise")
