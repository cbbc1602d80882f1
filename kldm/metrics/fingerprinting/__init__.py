"""Fingerprints: numbers that describe a structure and its composition, and what is decided by them."""

from kldm.metrics.fingerprinting.coverage import CUTOFFS, Coverage, Dataset, coverage_of
from kldm.metrics.fingerprinting.fingerprints import (
    FINGERPRINT_SECONDS,
    Fingerprint,
    cached_fingerprints,
    fingerprint_versions,
    fingerprints_of,
)
from kldm.metrics.fingerprinting.full_rule import Fingerprinted, Key, composition_valid, fingerprinted

__all__ = [
    "CUTOFFS",
    "FINGERPRINT_SECONDS",
    "Coverage",
    "Dataset",
    "Fingerprint",
    "Fingerprinted",
    "Key",
    "cached_fingerprints",
    "composition_valid",
    "coverage_of",
    "fingerprint_versions",
    "fingerprinted",
    "fingerprints_of",
]
