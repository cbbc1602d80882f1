"""Sums over the edges of every atom, in an order that is fast or reproducible on the device."""

from enum import Enum

import torch
from torch import Tensor

from kldm.crystals import Bags, Pairs


class Ends(Enum):
    """The two ends of a directed edge. Edges of a batch are its pairs twice, [2 P]: first j to i, then i to j."""

    RECEIVER = "receiver"
    SENDER = "sender"


def sum_at(end: Ends, values: Tensor, pairs: Pairs, atoms: int) -> Tensor:
    """[2 P, H] to [atoms, H]: sum of the values of the edges that have the atom at this end.

    The sum is made in at least float32; on a CPU that of rows of a narrower type is rounded to it once. There the rows
    of an atom are a bag, which one pass reads and sums. On a GPU rows are added one after the other by atomics, whose
    order changes from run to run; where torch is asked for deterministic algorithms, they are put in order and summed
    by segments.
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    if values.is_cuda and torch.are_deterministic_algorithms_enabled():
        return sum_by_segments(end, values.to(wide), pairs)
    if values.device.type == "cpu":
        return sum_of_bags(values, pairs.received if end is Ends.RECEIVER else pairs.sent).to(wide)
    values = values.to(wide)
    half = len(pairs.i)
    first, second = (pairs.i, pairs.j) if end is Ends.RECEIVER else (pairs.j, pairs.i)
    total = values.new_zeros(atoms, values.shape[1])
    return total.index_add_(0, first, values[:half]).index_add_(0, second, values[half:])


def sum_of_bags(rows: Tensor, bags: Bags) -> Tensor:
    """[R, H] to [bags, H]: the sum of each bag's rows, in at least float32, rounded to their type."""
    weights = None if bags.signs is None else bags.signs.to(rows.dtype)
    summed: Tensor = torch.embedding_bag(rows, bags.rows, bags.first, False, 0, False, weights)[0]
    return summed


def sum_by_segments(end: Ends, values: Tensor, pairs: Pairs) -> Tensor:
    """``sum_at`` with an order of additions that depends only on the layout."""
    order = pairs.by_receiver if end is Ends.RECEIVER else pairs.by_sender
    # Lengths are right by construction; torch's check of them would wait for the device.
    return torch.segment_reduce(
        values.index_select(0, order), "sum", lengths=pairs.degree, axis=0, unsafe=True, initial=0.0
    )
