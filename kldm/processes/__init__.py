"""The processes that come with kldm, with their codecs and schedules; importing them registers them."""

from kldm.processes.absorbing import Absorbing
from kldm.processes.analog_bits import AnalogBits
from kldm.processes.bits_flow import BitsFlow
from kldm.processes.codecs import Identity, LogTan
from kldm.processes.com_free_ve import ComFreeVE
from kldm.processes.euclidean_flow import EuclideanFlow
from kldm.processes.given import Given
from kldm.processes.lattice_flow import LatticeFlow
from kldm.processes.matrix import Matrix
from kldm.processes.one_hot import OneHot
from kldm.processes.property import Property
from kldm.processes.schedules import Cosine, Linear
from kldm.processes.torus_flow import TorusFlow
from kldm.processes.trivialized_torus import TrivializedTorus
from kldm.processes.vp_euclidean import VPEuclidean
from kldm.processes.wrapped_ve import WrappedVE

__all__ = [
    "Absorbing",
    "AnalogBits",
    "BitsFlow",
    "ComFreeVE",
    "Cosine",
    "EuclideanFlow",
    "Given",
    "Identity",
    "LatticeFlow",
    "Linear",
    "LogTan",
    "Matrix",
    "OneHot",
    "Property",
    "TorusFlow",
    "TrivializedTorus",
    "VPEuclidean",
    "WrappedVE",
]
