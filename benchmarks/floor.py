"""The matrix products that a network over pairs of atoms cannot do without, alone: the floor under its time."""

import attrs
import torch
from torch import Tensor

from benchmarks.timing import Work
from kldm.crystals import Layout
from kldm.execution import Precision
from kldm.networks import CSPVNet


@attrs.frozen
class Product:
    """Of a matrix [rows, inner] and one [inner, columns]."""

    rows: int
    inner: int
    columns: int

    def by_weight(self) -> "Product":
        """The gradient of the right factor."""
        return attrs.evolve(self, rows=self.inner, inner=self.rows)

    def by_input(self) -> "Product":
        """The gradient of the left factor."""
        return attrs.evolve(self, inner=self.columns, columns=self.inner)


def unavoidable(network: CSPVNet, layout: Layout, backward: bool) -> list[Product]:
    """The products of all layers, as the fast form has them.

    Forward, per layer: sin and cos of every pair, the second linear map of every edge, and five blocks of hidden x
    hidden per atom (receiver, sender, update). Backward: the gradient of each by its weight, and by its input but for
    sin and cos, which come from the coordinates alone. What is done once per call (inputs, heads) is left out.
    """
    atoms, pairs = layout.total, len(layout.pairs.i)
    hidden, geometry = network.norm.normalized_shape[0], 3 * network.frequencies
    waves = [Product(pairs, geometry, hidden)] * 2
    others = [
        Product(2 * pairs, hidden, hidden),
        Product(atoms, hidden, 2 * hidden),
        Product(atoms, 2 * hidden, hidden),
        Product(atoms, hidden, hidden),
    ]
    layer = [*waves, *others]
    if backward:
        layer = [*layer, *(one.by_weight() for one in layer), *(one.by_input() for one in others)]
    return layer * len(network.layers)


def flops(products: list[Product]) -> int:
    return sum(2 * one.rows * one.inner * one.columns for one in products)


def alone(products: list[Product], device: torch.device, precision: Precision) -> Work:
    """These products one after the other, into memory that is there already."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    made: dict[Product, tuple[Tensor, Tensor, Tensor]] = {}
    for one in products:
        if one not in made:
            shapes = (one.rows, one.inner), (one.inner, one.columns), (one.rows, one.columns)
            left, right, result = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
            made[one] = left, right, result

    def work() -> None:
        for one in products:
            left, right, result = made[one]
            torch.mm(left, right, out=result)

    return work
