"""Sampling: the targets, the constraints on the samples, and their generation."""

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
