"""Metrics: how good generated structures are. Importing this package registers them."""

from kldm.metrics.composition import compositional_validity
from kldm.metrics.de_novo import DeNovo
from kldm.metrics.match_rate import MatchRate
from kldm.metrics.relaxing import Relaxation
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
