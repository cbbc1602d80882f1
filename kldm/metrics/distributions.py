"""Wasserstein distances between properties of generated structures and those of a reference."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from kldm.errors import KldmError

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

T = TypeVar("T")


def property_distances(generated: Sequence["Structure"], reference: Sequence["Structure"]) -> dict[str, float | None]:
    """Wasserstein-1 distances of two properties (d_rho and d_elem of Xie et al. 2022, CDVAE).

    Structures without the property are left out; valid ones have both.

    Returns:
        ``wdist_density`` in g/cm^3 and ``wdist_num_elements``; None where either side is empty.
    """
    return {
        "wdist_density": wasserstein(_known(map(density, generated)), _known(map(density, reference))),
        "wdist_num_elements": wasserstein(
            _known(map(number_of_elements, generated)), _known(map(number_of_elements, reference))
        ),
    }


def wasserstein(generated: Sequence[float], reference: Sequence[float]) -> float | None:
    """W_1 = integral over x of |F(x) - G(x)|, F and G being the two distribution functions; in the unit of the values.

    It is None where either side is empty or has a value that is not finite.
    """
    if not (generated and reference and np.isfinite(generated).all() and np.isfinite(reference).all()):
        return None
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(generated, reference))


def density(structure: "Structure") -> float | None:
    """The density in g/cm^3; None where it is not finite and positive."""
    try:
        value = float(structure.density)
    except Exception:  # pymatgen raises all sorts on hopeless cells
        return None
    return value if math.isfinite(value) and value > 0 else None


def number_of_elements(structure: "Structure") -> int | None:
    """The number of distinct elements, ions of one element counted once; None without atoms."""
    try:
        symbols = {element.symbol for element in structure.composition.elements}
    except Exception:  # as above
        return None
    return len(symbols) or None


def drawn(items: Sequence[T], draw: int | None, seed: int) -> Sequence[T]:
    """Draw ``draw`` of the items without replacement and keep their order; all, if ``draw`` is None or there are fewer.

    The same items in the same order and the same seed give the same draw; sort items of random order first.

    Raises:
        KldmError: ``draw`` below 1.
    """
    if draw is not None and draw < 1:
        raise KldmError(f"must be at least 1, got {draw}", place="draw", remedy="leave it out to take all")
    if draw is None or draw >= len(items):
        return items
    rows = np.random.default_rng(seed).choice(len(items), draw, replace=False)
    return [items[row] for row in sorted(rows.tolist())]


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
