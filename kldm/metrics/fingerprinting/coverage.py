"""Coverage: how much of a reference lies near generated structures, and how many of these lie near the reference."""

from collections.abc import Mapping, Sequence
from typing import Literal

import attrs
import numpy as np
import numpy.typing as npt

from kldm.metrics.fingerprinting.fingerprints import Fingerprint
from kldm.runtime.numbers import Float

_BLOCK = 2**22
"""Number of distances in memory at a time: 32 MB."""

SAME = 1e-8
"""Fingerprints closer than this differ by rounding only."""


@attrs.frozen
class Cutoffs:
    """Largest distances that count as near, inclusive.

    Attributes:
        structure: between CrystalNN fingerprints.
        composition: between scaled Magpie fingerprints.
        published: whether a paper reports coverage of this data set with them.
    """

    structure: float
    composition: float
    published: bool = True


Dataset = Literal["mp_20", "carbon_24", "perov_5", "alex_mp_20", "mpts_52"]

CUTOFFS: Mapping[Dataset, Cutoffs] = {
    "mp_20": Cutoffs(0.4, 10.0),
    "carbon_24": Cutoffs(0.2, 4.0),
    "perov_5": Cutoffs(0.2, 4.0),
    "alex_mp_20": Cutoffs(0.4, 10.0),
    "mpts_52": Cutoffs(0.4, 10.0, published=False),
}
"""Those of CDVAE (Xie et al. 2022); alex_mp_20 as in the KLDM code. None are published for mpts_52: it has mp_20's."""


@attrs.frozen
class Coverage:
    """Shares in [0, 1] and mean smallest distances; None where undefined.

    Attributes:
        cov_recall: share of the reference that is covered.
        cov_precision: share of all generated candidates that are covered.
        amsd_recall, amsd_precision: mean smallest distance of structure fingerprints, over the reference and over the
            generated structures.
        amcd_recall, amcd_precision: the same of composition fingerprints.
        generated, reference: how many of them have a fingerprint.
        copies: number of generated structures with both smallest distances below ``SAME``.
    """

    cov_recall: float | None
    cov_precision: float | None
    amsd_recall: float | None
    amsd_precision: float | None
    amcd_recall: float | None
    amcd_precision: float | None
    generated: int
    reference: int
    copies: int

    def values(self) -> dict[str, float | None]:
        """The named results."""
        names = ("cov_recall", "cov_precision", "amsd_recall", "amsd_precision", "amcd_recall", "amcd_precision")
        return {name: getattr(self, name) for name in names}


def coverage_of(generated: Sequence[Fingerprint], reference: Sequence[Fingerprint], cutoffs: Cutoffs) -> Coverage:
    """COV-R and COV-P (Xie et al. 2022, CDVAE; Ganea et al. 2021 for molecules), with D_s and D_c the Euclidean
    distances of structure and composition fingerprints:

        COV-R = mean over references t of [min_g D_s(g, t) <= s and min_g D_c(g, t) <= c]
        COV-P = sum over generated g of [min_t D_s(g, t) <= s and min_t D_c(g, t) <= c] / all generated

    The two minima may belong to different structures, as in CDVAE's code. Generated structures without a
    fingerprint count in the denominator of COV-P and cover nothing; references without one are left out. If no
    generated structure has a fingerprint, nothing is covered and the mean distances are undefined.

    Args:
        generated: one for every requested candidate, failures included.
        reference: one for every reference structure.
    """
    ours, theirs = _Points.of(generated), _Points.of(reference)
    structure_g, structure_t = minima(ours.structure, theirs.structure)
    composition_g, composition_t = minima(ours.composition, theirs.composition)
    recalled = (structure_t <= cutoffs.structure) & (composition_t <= cutoffs.composition)
    precise = (structure_g <= cutoffs.structure) & (composition_g <= cutoffs.composition)
    defined = len(theirs) > 0 and len(generated) > 0
    both = defined and len(ours) > 0
    return Coverage(
        cov_recall=float(np.mean(recalled)) if defined else None,
        cov_precision=int(np.sum(precise)) / len(generated) if defined else None,
        amsd_recall=float(np.mean(structure_t)) if both else None,
        amsd_precision=float(np.mean(structure_g)) if both else None,
        amcd_recall=float(np.mean(composition_t)) if both else None,
        amcd_precision=float(np.mean(composition_g)) if both else None,
        generated=len(ours),
        reference=len(theirs),
        copies=int(np.sum((structure_g < SAME) & (composition_g < SAME))),
    )


def minima(a: Float, b: Float, block: int = _BLOCK) -> tuple[Float, Float]:
    """Smallest Euclidean distance of each row of one set to the other set; infinite if that is empty.

    The matrix of all distances (0.7 GB for 10,000 x 9,046) is never in memory, only ``block`` of them at a time.

    Args:
        a: [n, d].
        b: [m, d].

    Returns:
        [n] for the rows of ``a`` and [m] for the rows of ``b``.
    """
    from scipy.spatial.distance import cdist

    of_a, of_b = np.full(len(a), np.inf), np.full(len(b), np.inf)
    if not (len(a) and len(b)):
        return of_a, of_b
    rows = max(1, block // len(b))
    for start in range(0, len(a), rows):
        distances = cdist(a[start : start + rows], b)
        of_a[start : start + rows] = distances.min(axis=1)
        of_b = np.minimum(of_b, distances.min(axis=0))
    return of_a, of_b


@attrs.frozen(eq=False)
class _Points:
    """The fingerprints that exist, [n, 61] and [n, 132]."""

    structure: Float
    composition: Float

    @classmethod
    def of(cls, fingerprints: Sequence[Fingerprint]) -> "_Points":
        pairs = [(f.structure, f.composition) for f in fingerprints if f.structure is not None]
        return cls(_stacked([s for s, _ in pairs]), _stacked([c for _, c in pairs if c is not None]))

    def __len__(self) -> int:
        return len(self.structure)


def _stacked(rows: Sequence[npt.NDArray[np.float64]]) -> Float:
    return np.array(rows, dtype=np.float64) if rows else np.zeros((0, 0))
