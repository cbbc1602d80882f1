"""Sampling: what is asked for, what the answers must obey, and how they are generated."""

from kldm.sampling.constraints import Constraints, violations
from kldm.sampling.generation import CandidateRequest, candidates, generate, requests
from kldm.sampling.targets import Targets, compositions, de_novo, drawn_sizes, with_properties

__all__ = [
    "CandidateRequest",
    "Constraints",
    "Targets",
    "candidates",
    "compositions",
    "de_novo",
    "drawn_sizes",
    "generate",
    "requests",
    "violations",
    "with_properties",
]
