"""How the same numbers are computed: choices that change speed, memory and rounding, not what is computed."""

import os
import platform
from functools import cache
from typing import Literal, Protocol, runtime_checkable

import attrs
import torch

from kldm.validators import one_of

Messages = Literal["manual", "triton", "autograd", "plain"]
Precision = Literal["auto", "fp32", "tf32", "bf16"]

_X86 = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}


@attrs.frozen(kw_only=True)
class Execution:
    """Choices of a run that may change when it is resumed.

    Args:
        messages: how ``cspvnet.v1`` and ``cspnet.v1`` compute the messages between atoms. Three ways split the linear
            map over its inputs, which saves two thirds of the arithmetic: ``manual``, with a backward pass written by
            hand that keeps two numbers per edge and hidden unit; ``triton``, one fused kernel on an NVIDIA GPU,
            elsewhere ``manual``; ``autograd``, by torch's own operators, which can be differentiated twice. ``plain``
            computes the network as its file writes it, for comparison; it can be differentiated twice too.
        compile: whether ``torch.compile`` is used in networks that provide for it; the first batches take minutes.
            ``messages`` then says nothing, but for ``plain``, which is computed as it is written.
        graphs: whether sampling on an NVIDIA GPU replays its steps as a CUDA graph.
        deterministic: whether a GPU computes the same bits again; slower.

    Raises:
        KldmError: there is no such kind of messages.
    """

    messages: Messages = attrs.field(default="manual", validator=one_of())
    compile: bool = False
    graphs: bool = False
    deterministic: bool = False


@runtime_checkable
class Executes(Protocol):
    """A network that has a choice in how it computes."""

    def execute(self, execution: Execution) -> None:
        """Take these choices from now on."""
        ...


def set_execution(network: object, execution: Execution) -> None:
    """Choose how a network computes and, for the whole process, whether torch is reproducible."""
    if execution.deterministic:
        # Read when the GPU's matrix library starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.get_deterministic_debug_mode() != (2 if execution.deterministic else 0):
        # Not without need: it imports torch's compiler, which takes longer than to sample.
        torch.use_deterministic_algorithms(execution.deterministic)
    if isinstance(network, Executes):
        network.execute(execution)


def default_device() -> torch.device:
    """The first GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """What a report calls a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"


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
