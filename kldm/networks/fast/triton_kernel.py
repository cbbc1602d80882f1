"""The kernel of ``triton_messages``. Imports Triton, and is imported by the one function that launches it."""

import triton
import triton.language as tl


def _messages(
    receiver: tl.tensor,
    sender: tl.tensor,
    even: tl.tensor,
    odd: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    i: tl.tensor,
    j: tl.tensor,
    total: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    pairs: tl.tensor,
    HIDDEN: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
) -> None:
    """Messages of a block of pairs, both ways, in a block of output units: added to ``total`` at the receivers.

    All tensors are contiguous. The blocks of output units of the same pairs are neighbours, so that what the first of
    them reads and all others read again comes from the cache. Offsets are of 64 bits: 2 P H may pass 2^31.

    Args:
        receiver, sender, even, odd, weight, bias, i, j: see ``MessageBlock``.
        total: [N, H] of float32, zero at first.
        first, second: [2 P, H] of the type of ``weight``: the pre-activations, written if KEEP.
        pairs: P.
        HIDDEN: H.
        PRECISION: of products of float32, as ``tl.dot`` names it.
        BLOCK_PAIRS, BLOCK_UNITS, BLOCK_INNER: pairs, output units, and the summands taken at a time; BLOCK_UNITS is a
            multiple of BLOCK_INNER.
    """
    blocks = tl.cdiv(HIDDEN, BLOCK_UNITS)
    start_unit = tl.program_id(0) % blocks * BLOCK_UNITS
    start_pair = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_PAIRS
    pair, unit = tl.arange(0, BLOCK_PAIRS), start_unit + tl.arange(0, BLOCK_UNITS)
    present, known = pair < pairs - start_pair, unit < HIDDEN
    row_i = tl.load(i + start_pair + pair, mask=present, other=0)[:, None] * HIDDEN
    row_j = tl.load(j + start_pair + pair, mask=present, other=0)[:, None] * HIDDEN
    # What is of a pair lies together: 64 bits to the first of them, 32 from there.
    row = pair[:, None] * HIDDEN
    to_i, to_j = start_pair * HIDDEN, (start_pair + pairs) * HIDDEN
    dtype = weight.dtype.element_ty

    z_to_i = tl.zeros((BLOCK_PAIRS, BLOCK_UNITS), tl.float32)
    z_to_j = tl.zeros((BLOCK_PAIRS, BLOCK_UNITS), tl.float32)
    for start in range(0, HIDDEN, BLOCK_INNER):
        inner = start + tl.arange(0, BLOCK_INNER)
        column = inner[None, :]
        # Beyond the pairs and the width a is 0, and so is silu(a).
        inside = present[:, None] & (column < HIDDEN)
        even_part = tl.load(even + to_i + row + column, mask=inside, other=0.0).to(tl.float32)
        odd_part = tl.load(odd + to_i + row + column, mask=inside, other=0.0).to(tl.float32)
        a_to_i = tl.load(receiver + row_i + column, mask=inside, other=0.0).to(tl.float32)
        a_to_i += tl.load(sender + row_j + column, mask=inside, other=0.0).to(tl.float32)
        a_to_j = tl.load(receiver + row_j + column, mask=inside, other=0.0).to(tl.float32)
        a_to_j += tl.load(sender + row_i + column, mask=inside, other=0.0).to(tl.float32)
        # Rounded before the activation, as what is kept: the backward pass computes the activation again from it.
        a_to_i = (a_to_i + even_part + odd_part).to(dtype)
        a_to_j = (a_to_j + even_part - odd_part).to(dtype)
        if KEEP:
            # Every column once: by the program whose output units it is among.
            own = inside & (column >= start_unit) & (column < start_unit + BLOCK_UNITS)
            tl.store(first + to_i + row + column, a_to_i, mask=own)
            tl.store(first + to_j + row + column, a_to_j, mask=own)
        factor = tl.load(
            weight + unit[None, :] * HIDDEN + inner[:, None], mask=known[None, :] & (inner[:, None] < HIDDEN), other=0.0
        )
        z_to_i = tl.dot(silu(a_to_i.to(tl.float32)).to(dtype), factor, z_to_i, input_precision=PRECISION)
        z_to_j = tl.dot(silu(a_to_j.to(tl.float32)).to(dtype), factor, z_to_j, input_precision=PRECISION)

    column = unit[None, :]
    inside = present[:, None] & known[None, :]
    shift = tl.load(bias + unit, mask=known, other=0.0).to(tl.float32)[None, :]
    z_to_i, z_to_j = (z_to_i + shift).to(dtype), (z_to_j + shift).to(dtype)
    if KEEP:
        tl.store(second + to_i + row + column, z_to_i, mask=inside)
        tl.store(second + to_j + row + column, z_to_j, mask=inside)
    # Relaxed: nobody reads the sums before the kernel ends.
    tl.atomic_add(total + row_i + column, silu(z_to_i.to(tl.float32)), mask=inside, sem="relaxed")
    tl.atomic_add(total + row_j + column, silu(z_to_j.to(tl.float32)), mask=inside, sem="relaxed")


def _silu(x: tl.tensor) -> tl.tensor:
    return x * tl.sigmoid(x)


silu = triton.jit(_silu)
# A number of pairs that happens to be 1 or a multiple of 16 is no reason to compile again.
messages = triton.jit(do_not_specialize=["pairs"])(_messages)

INTERPRETED = not isinstance(messages, triton.JITFunction)
"""Whether Triton imitates a GPU on the CPU, for tests of kernels."""
