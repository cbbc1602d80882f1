"""Permutes the axes of a crystal, so that the invariance to the order of lattice vectors is learnt from data."""

import itertools

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals
from kldm.registry import augmentation
from kldm.runtime.tables import table
from kldm.torus import unit

_ORDERS = tuple(itertools.permutations(range(3)))


def _is_odd(order: tuple[int, ...]) -> bool:
    """Whether the order takes an odd number of swaps."""
    return sum(a > b for a, b in itertools.combinations(order, 2)) % 2 == 1


@augmentation("axis_permutations.v1")
@attrs.frozen(kw_only=True)
class AxisPermutations:
    """One of the six orders of the axes for each crystal, all equally likely (EquiCSP, Lin et al. 2024).

    With the order p the new axis k is the old axis p(k): f'_k = f_p(k), and the same for lengths and angles, as the
    angle of index k lies between the two other axes.

    An odd order makes the axes left-handed. Lengths and angles cannot say so, and the crystal built from them in the
    usual right-handed setting is the mirror image: the same distances, energy and symmetry up to handedness, and
    another crystal only where it is chiral. Turning all three axes round, f' = 1 - f_p, restores the handedness and
    leaves lengths and angles as they are, so that all six orders describe the very same crystal.

    Args:
        keep_handedness: whether odd orders turn the axes round too. Without it, as in EquiCSP, a chiral crystal is
            shown as either of its two mirror images.
    """

    keep_handedness: bool = True

    def augmented(self, crystals: Crystals, rng: torch.Generator) -> Crystals:
        """The crystals with their axes in another order; a draw of one integer per crystal."""
        layout, device = crystals.layout, crystals.device
        drawn = torch.randint(len(_ORDERS), (len(crystals),), generator=rng, device=device)
        order, odd = _orders(device)[drawn], _odd(device)[drawn]
        fractional = crystals.fractional.gather(1, layout.per_atom(order))
        if self.keep_handedness:
            fractional = torch.where(layout.per_atom(odd).unsqueeze(-1), unit(-fractional), fractional)
        lattice = crystals.lattice.gather(1, torch.cat([order, order + 3], 1))
        return attrs.evolve(crystals, fractional=fractional, lattice=lattice)


@table
def _orders(device: torch.device) -> Tensor:
    """The orders, int64 [6, 3]."""
    return torch.tensor(_ORDERS, device=device)


@table
def _odd(device: torch.device) -> Tensor:
    """Which of the orders are odd, bool [6]."""
    return torch.tensor([_is_odd(order) for order in _ORDERS], device=device)
