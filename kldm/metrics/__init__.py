"""Metrics: what generated structures are worth. Importing this package puts them on their shelf."""

from kldm.metrics.match_rate import MatchRate
from kldm.metrics.validity import structural_validity

__all__ = ["MatchRate", "structural_validity"]
