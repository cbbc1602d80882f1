"""Whether two crystals are the same: pymatgen's StructureMatcher, faster, and what is built on it."""

from kldm.metrics.matching.matcher import Matcher
from kldm.metrics.matching.metre import count_repeated, smallest_rms
from kldm.metrics.matching.pairs import Examined, examine, match
from kldm.metrics.matching.selection import CONSENSUS, chosen_indices, consensus

__all__ = [
    "CONSENSUS",
    "Examined",
    "Matcher",
    "chosen_indices",
    "consensus",
    "count_repeated",
    "examine",
    "match",
    "smallest_rms",
]
