"""Metrics: what generated structures are worth. Importing this package puts them on their shelf."""

from kldm.metrics.composition import compositional_validity
from kldm.metrics.de_novo import DeNovo
from kldm.metrics.match_rate import MatchRate
from kldm.metrics.relaxing.relaxation import Relaxation
from kldm.metrics.stability import Stability
from kldm.metrics.validity import Validity, structural_validity

__all__ = [
    "DeNovo",
    "MatchRate",
    "Relaxation",
    "Stability",
    "Validity",
    "compositional_validity",
    "structural_validity",
]
