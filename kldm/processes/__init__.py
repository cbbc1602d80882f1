"""The processes that come with kldm, with their codecs and schedules; importing them registers them."""

from kldm.processes.absorbing import Absorbing
from kldm.processes.analog_bits import AnalogBits
from kldm.processes.codecs import Identity, LogTan
from kldm.processes.given import Given
from kldm.processes.one_hot import OneHot
from kldm.processes.schedules import Cosine, Linear
from kldm.processes.trivialized_torus import TrivializedTorus
from kldm.processes.vp_euclidean import VPEuclidean

__all__ = [
    "Absorbing",
    "AnalogBits",
    "Cosine",
    "Given",
    "Identity",
    "Linear",
    "LogTan",
    "OneHot",
    "TrivializedTorus",
    "VPEuclidean",
]
