"""The matrix products that a network over pairs of atoms cannot do without, alone: the floor under its time."""

import torch
from torch import Tensor

from benchmarks.timing import Work
from kldm.crystals import Layout
from kldm.networks.pair_network import PairNetwork

Factors = tuple[int, int, int]
"""Rows, inner and columns of a product."""


def unavoidable(network: PairNetwork, layout: Layout, backward: bool) -> list[Factors]:
    """The products of all layers, as the fast form has them.

    Forward, per layer: sin and cos of every pair, the second linear map of every edge, and five blocks of hidden x
    hidden per atom (receiver, sender, update). Backward: the gradient of each by its weight, and by its input but for
    sin and cos, which come from the coordinates alone. What is done once per call (inputs, heads) is left out.
    """
    atoms, pairs = layout.total, len(layout.pairs.i)
    hidden, geometry = network.norm.normalized_shape[0], 3 * network.frequencies
    waves = [(pairs, geometry, hidden)] * 2
    others = [
        (2 * pairs, hidden, hidden),
        (atoms, hidden, 2 * hidden),
        (atoms, 2 * hidden, hidden),
        (atoms, hidden, hidden),
    ]
    layer = [*waves, *others]
    if backward:
        layer += [(inner, rows, columns) for rows, inner, columns in (*waves, *others)]
        layer += [(rows, columns, inner) for rows, inner, columns in others]
    return layer * len(network.layers)


def flops(products: list[Factors]) -> int:
    return sum(2 * rows * inner * columns for rows, inner, columns in products)


def alone(products: list[Factors], device: torch.device) -> Work:
    """These products one after the other, into memory that is there already."""
    made: dict[Factors, tuple[Tensor, Tensor, Tensor]] = {}
    for rows, inner, columns in products:
        if (rows, inner, columns) not in made:
            left, right = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
            made[rows, inner, columns] = (left, right, torch.empty(rows, columns, device=device))

    def work() -> None:
        for factors in products:
            left, right, result = made[factors]
            torch.mm(left, right, out=result)

    return work
