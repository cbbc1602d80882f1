"""The message block as one fused kernel on an NVIDIA GPU, and the block with a backward pass by hand elsewhere."""

import logging
from functools import cache

import attrs
import torch
from torch import Tensor
from torch.nn.functional import silu

from kldm.crystals import Layout, Pairs
from kldm.networks.fast.messages import differentiated_by_hand, first_activation, manual_messages
from kldm.networks.fast.products import differentiated
from kldm.networks.fast.sums import Ends, sum_at

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

WIDEST = 8192
"""Largest H; offsets within the weight are of 32 bits."""

TRIAL = (14, 2, 1, 5)
"""Numbers of atoms of the crystals that the kernel is tried on: 102 pairs, no multiple of a block."""

log = logging.getLogger("kldm.networks")


def triton_messages(
    receiver: Tensor, sender: Tensor, even: Tensor, odd: Tensor, weight: Tensor, bias: Tensor, pairs: Pairs
) -> Tensor:
    """``MessageBlock`` in one kernel: gathers, both linear maps' activations, the product between and the sums.

    Without gradients nothing of the size of the edges, [2 P, H], is written. With them the two pre-activations are kept
    and the backward pass is the one that is written by hand. Both directions of a pair are computed together, so that
    even and odd are read once for every 128 output units; gathers and the first activation are repeated for each of
    these blocks, from the cache. Products of float32 are in TF32 unless torch's float32_matmul_precision is "highest":
    then they are exact, but without tensor cores, for which torch's own products are as good or better.

    The block with a backward pass by hand takes over, with one warning per reason, where there is no NVIDIA GPU or no
    Triton, for float64 or H > 8192, where torch is asked for deterministic algorithms (the sums are atomic), and where
    the kernel cannot be compiled or gives other numbers: it is tried on a few atoms the first time.

    The kernel has been run in Triton's interpreter and compiled for compute capabilities 8.0 and 9.0; it has not been
    run or timed on a GPU, and its block sizes are chosen by the registers and the memory that they take.
    """
    tensors = (receiver, sender, even, odd, weight, bias)
    reason = _obstacle(receiver, weight) or _fault(_Kind.of(receiver, weight), differentiated(*tensors))
    if reason is None:
        return _fused(*tensors, pairs)
    _warn(reason)
    return manual_messages(*tensors, pairs)


@cache
def _warn(reason: str) -> None:
    """Once per reason."""
    log.warning('messages are computed as "manual", not as "triton": %s', reason)


def _fused(
    receiver: Tensor, sender: Tensor, even: Tensor, odd: Tensor, weight: Tensor, bias: Tensor, pairs: Pairs
) -> Tensor:
    """By the kernel, whatever the device: in Triton's interpreter, that is the CPU too."""
    return differentiated_by_hand(_launch, (receiver, sender, even, odd, weight, bias), pairs)


def _launch(
    receiver: Tensor,
    sender: Tensor,
    even: Tensor,
    odd: Tensor,
    weight: Tensor,
    bias: Tensor,
    pairs: Pairs,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``Summed`` by the kernel; pre-activations that are not to be kept are empty."""
    from kldm.networks.fast.triton_kernel import messages

    count, hidden = len(pairs.i), receiver.shape[1]
    total = receiver.new_zeros(receiver.shape, dtype=torch.float32)
    first, second = (weight.new_empty(2 * count if keep else 0, hidden) for _ in range(2))
    if count:
        kind = _Kind.of(receiver, weight)
        blocks = _Blocks.of(kind)
        programs = -(-count // blocks.pairs) * -(-hidden // blocks.units)
        read = (receiver, sender, even, odd, weight, bias, pairs.i, pairs.j)
        # Triton launches on the current device, whatever the tensors lie on.
        with torch.cuda.device_of(receiver):  # type: ignore[no-untyped-call]
            messages[(programs,)](
                *(tensor.contiguous() for tensor in read),
                total,
                first,
                second,
                count,
                HIDDEN=hidden,
                KEEP=keep,
                PRECISION=kind.precision,
                BLOCK_PAIRS=blocks.pairs,
                BLOCK_UNITS=blocks.units,
                BLOCK_INNER=blocks.inner,
                num_warps=blocks.warps,
                num_stages=blocks.stages,
            )
    return total, first, second


@attrs.frozen
class _Kind:
    """What the kernel is compiled for.

    Attributes:
        node, product: types of the nodes and of the factors of the second product.
        precision: of the products of float32: "ieee" or "tf32".
    """

    device: torch.device
    node: torch.dtype
    product: torch.dtype
    hidden: int
    precision: str

    @classmethod
    def of(cls, receiver: Tensor, weight: Tensor) -> "_Kind":
        exact = weight.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
        return cls(receiver.device, receiver.dtype, weight.dtype, receiver.shape[1], "ieee" if exact else "tf32")


@attrs.frozen
class _Blocks:
    """How the work is cut; see the kernel. Larger blocks of units repeat less, but their sums spill from registers."""

    pairs: int
    units: int
    inner: int
    warps: int
    stages: int

    @classmethod
    @cache
    def of(cls, kind: _Kind) -> "_Blocks":
        hopper = kind.device.type != "cuda" or torch.cuda.get_device_capability(kind.device)[0] == 9
        if kind.precision == "ieee":
            pairs, units, stages = 32, 64, 2
        else:
            # A matrix instruction of compute capability 9 takes 64 rows.
            pairs, units, stages = 64 if hopper else 32, 128, 3
        # Powers of two, and at least the 16 that a product of tiles asks for.
        units = min(units, max(16, 1 << (kind.hidden - 1).bit_length()))
        return cls(pairs, units, min(units, 32), warps=8, stages=stages)


def _obstacle(receiver: Tensor, weight: Tensor) -> str | None:
    """Why the kernel cannot be used for such a call; None if it can."""
    if not receiver.is_cuda or torch.version.hip is not None:
        return "there is no NVIDIA GPU"
    if torch.are_deterministic_algorithms_enabled():
        return "its sums are not deterministic"
    unknown = [str(tensor.dtype) for tensor in (receiver, weight) if tensor.dtype not in DTYPES]
    if unknown:
        return f"it does not compute in {unknown[0].removeprefix('torch.')}"
    if receiver.shape[1] > WIDEST:
        return f"it takes at most {WIDEST} hidden units, not {receiver.shape[1]}"
    return None


@cache
def _fault(kind: _Kind, keep: bool) -> str | None:
    """Why the kernel does not work for this kind of call; None if it does. It is tried once to find out."""
    try:
        from kldm.networks.fast.triton_kernel import INTERPRETED

        if INTERPRETED:
            return "Triton is in its interpreter"
        error = _trial_error(kind, keep)
    except ImportError as error_:
        return f"Triton cannot be imported ({_first_line(error_)})"
    # A compiler for many GPUs and drivers fails in many ways; the other block serves in all of them.
    except Exception as error_:
        return f"the kernel fails on this GPU ({type(error_).__name__}: {_first_line(error_)})"
    bound = 1e-4 if kind.product == torch.float32 and kind.precision == "ieee" else 2e-2
    return None if error < bound else f"the kernel is wrong on this GPU (relative error {error:.1e})"


@torch.no_grad()
def _trial_error(kind: _Kind, keep: bool) -> float:
    """Largest relative error of what the kernel writes, against the same in float64."""
    layout, rng = Layout.of(TRIAL, kind.device), torch.Generator().manual_seed(0)
    pairs = layout.pairs

    def draw(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=rng, device="cpu", dtype=torch.float64)).to(kind.device, dtype)

    hidden = kind.hidden
    receiver, sender = (draw(layout.total, hidden, dtype=kind.node) for _ in range(2))
    even, odd = (draw(len(pairs.i), hidden, dtype=kind.product) for _ in range(2))
    weight = draw(hidden, hidden, dtype=kind.product, scale=hidden**-0.5)
    bias = draw(hidden, dtype=kind.product)
    first = first_activation(receiver.double(), sender.double(), even.double(), odd.double(), pairs)
    second = torch.addmm(bias.double(), silu(first), weight.double().t())
    total = sum_at(Ends.RECEIVER, silu(second), pairs, layout.total)

    results = _launch(receiver, sender, even, odd, weight, bias, pairs, keep)
    written = list(zip(results, (total, first, second), strict=True))[: 3 if keep else 1]
    errors = [torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs) for ours, theirs in written]
    return float(torch.stack(errors).max())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
