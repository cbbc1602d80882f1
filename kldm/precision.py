"""How matrix products are rounded, and what of that a device does by itself."""

import platform
from functools import cache
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "tf32", "bf16"]

_X86 = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}


def used_precision(precision: Precision, device: torch.device) -> Precision:
    """What a precision that is asked for comes to on a device; never ``auto``.

    ``auto`` is bf16 where the device multiplies bfloat16 natively, else fp32. ``tf32`` is a GPU's, of NVIDIA's compute
    capability 8 and above; elsewhere, and so on every CPU, the products are those of fp32.
    """
    if precision == "auto":
        return "bf16" if multiplies_bfloat16(device) else "fp32"
    if precision == "tf32":
        ampere = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
        return "tf32" if ampere and torch.version.hip is None else "fp32"
    return precision


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are faster than those of float32 there."""
    return bfloat16_unit(device) is not None


@cache
def bfloat16_unit(device: torch.device) -> str | None:
    """What multiplies bfloat16 natively there; None where torch would imitate it, slower than float32.

    Of a CPU AMX or AVX512-BF16 (x86) or Arm's BF16 extension, where torch has oneDNN to use them.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return "GPU" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    if platform.machine() in ("aarch64", "arm64"):
        return "Arm BF16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None
    # Torch's own names, of no public interface: a version without one of them has no way to tell.
    asked = {name: getattr(torch.cpu, function, None) for name, function in _X86.items()}
    return next((name for name, found in asked.items() if found is not None and found()), None)
