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
    """Choices that may differ when a run is resumed.

    Args:
        messages: how ``cspvnet.v1`` and ``cspnet.v1`` compute the messages between atoms. Three ways split the linear
            map over its inputs, which saves two thirds of the arithmetic: ``manual``, with a backward pass written by
            hand that keeps two numbers per edge and hidden unit; ``triton``, one fused kernel on an NVIDIA GPU,
            elsewhere ``manual``; ``autograd``, by torch's own operators, which can be differentiated twice. ``plain``
            computes the network as its file writes it, for comparison; it can be differentiated twice too.
        compile: whether networks that support it use ``torch.compile``; the first batches then take minutes.
            ``messages`` is then ignored, except ``plain``, which is never compiled.
        graphs: whether sampling on an NVIDIA GPU replays its steps as a CUDA graph.
        deterministic: whether a GPU computes bitwise the same in every run, which is slower.

    Raises:
        KldmError: ``messages`` is none of these.
    """

    messages: Messages = attrs.field(default="manual", validator=one_of())
    compile: bool = False
    graphs: bool = False
    deterministic: bool = False


@runtime_checkable
class Executes(Protocol):
    """A network that can compute in several ways."""

    def execute(self, execution: Execution) -> None:
        """Compute in this way from now on."""
        ...


def set_execution(network: object, execution: Execution) -> None:
    """Set how a network computes and, for the whole process, whether torch is deterministic."""
    if execution.deterministic:
        # cuBLAS reads it when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.get_deterministic_debug_mode() != (2 if execution.deterministic else 0):
        # Only if needed: the call imports torch's compiler, which takes longer than sampling.
        torch.use_deterministic_algorithms(execution.deterministic)
    if isinstance(network, Executes):
        network.execute(execution)


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The name of a device in reports."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"


def used_precision(precision: Precision, device: torch.device) -> Precision:
    """The precision that a device computes in when ``precision`` is asked for; never ``auto``.

    ``auto`` is bf16 where the device multiplies bfloat16 natively, else fp32. ``tf32`` exists on NVIDIA GPUs
    of compute capability 8 and above; elsewhere, and so on every CPU, it is fp32.
    """
    if precision == "auto":
        return "bf16" if multiplies_bfloat16(device) else "fp32"
    if precision == "tf32":
        ampere = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
        return "tf32" if ampere and torch.version.hip is None else "fp32"
    return precision


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are faster than those of float32 on the device."""
    return bfloat16_unit(device) is not None


@cache
def bfloat16_unit(device: torch.device) -> str | None:
    """The unit of the device that multiplies bfloat16 natively; None where torch emulates it, slower than float32.

    On a CPU it is AMX or AVX512-BF16 (x86) or Arm's BF16 extension, if torch has oneDNN to use it.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return "GPU" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    if platform.machine() in ("aarch64", "arm64"):
        return "Arm BF16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None
    # These functions are private to torch; a unit counts as absent where its function is.
    probes = {name: getattr(torch.cpu, function, None) for name, function in _X86.items()}
    return next((name for name, probe in probes.items() if probe is not None and probe()), None)
