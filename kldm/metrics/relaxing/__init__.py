"""Relaxation by a potential, and what MatterGen's pipeline reads off relaxed structures."""

from kldm.metrics.relaxing.corrections import mp2020
from kldm.metrics.relaxing.displacement import displacements
from kldm.metrics.relaxing.hull import Hull, Scheme, above_hull, check_scales, read_hull
from kldm.metrics.relaxing.relaxation import (
    FAR_OFF,
    RELAXATION_SECONDS,
    Relaxation,
    Relaxed,
    calculator_of,
    far_off,
    impossible,
    relaxation_versions,
    relaxed,
)
from kldm.metrics.relaxing.similarity import Comparator, novel, unique

__all__ = [
    "FAR_OFF",
    "RELAXATION_SECONDS",
    "Comparator",
    "Hull",
    "Relaxation",
    "Relaxed",
    "Scheme",
    "above_hull",
    "calculator_of",
    "check_scales",
    "displacements",
    "far_off",
    "impossible",
    "mp2020",
    "novel",
    "read_hull",
    "relaxation_versions",
    "relaxed",
    "unique",
]
