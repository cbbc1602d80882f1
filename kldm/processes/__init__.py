"""The processes that come with kldm, with their codecs and schedules; importing them registers them."""

from kldm.processes.absorbing import Absorbing
from kldm.processes.cell_prior import lattice_flow
from kldm.processes.codecs import Identity, LogTan
from kldm.processes.coded_species import analog_bits, bits_flow, one_hot
from kldm.processes.euclidean_flow import EuclideanFlow
from kldm.processes.given import Given
from kldm.processes.matrix import Matrix
from kldm.processes.property import Property
from kldm.processes.schedules import Cosine, Linear
from kldm.processes.torus_flow import TorusFlow
from kldm.processes.trivialized_torus import TrivializedTorus
from kldm.processes.vp_euclidean import VPEuclidean
from kldm.processes.wrapped_ve import WrappedVE, com_free_ve

__all__ = [
    "Absorbing",
    "Cosine",
    "EuclideanFlow",
    "Given",
    "Identity",
    "Linear",
    "LogTan",
    "Matrix",
    "Property",
    "TorusFlow",
    "TrivializedTorus",
    "VPEuclidean",
    "WrappedVE",
    "analog_bits",
    "bits_flow",
    "com_free_ve",
    "lattice_flow",
    "one_hot",
]
