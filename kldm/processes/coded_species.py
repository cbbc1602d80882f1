"""Atom types as real numbers: a code book under Euclidean diffusion or on straight lines."""

from typing import Literal

import attrs

from kldm.interfaces import Schedule
from kldm.processes.code_book import ANALOG_BITS, ONE_HOT
from kldm.processes.euclidean_flow import EuclideanFlow
from kldm.processes.schedules import Linear
from kldm.processes.vp_euclidean import VPEuclidean
from kldm.registry import process

_LINEAR = Linear()


@process("one_hot.v1")
def one_hot(
    *,
    schedule: Schedule = _LINEAR,
    parameterization: Literal["x0", "eps"] = "x0",
    eta: float = 1.0,
    elements: tuple[int, ...] | None = None,
) -> VPEuclidean:
    """Atom types as one-hot vectors under the VP-SDE, decoded by argmax (section 3.3, variant C; Jiao et al., 2023).

    Args:
        schedule, parameterization, eta: see ``VPEuclidean``.
        elements: atomic numbers that samples may contain, see ``CodeBook``; None: all.

    Raises:
        KldmError: an option out of range.
    """
    codec = attrs.evolve(ONE_HOT, elements=elements)
    return VPEuclidean(codec=codec, schedule=schedule, parameterization=parameterization, eta=eta)


@process("analog_bits.v1")
def analog_bits(
    *, schedule: Schedule = _LINEAR, eta: float = 1.0, elements: tuple[int, ...] | None = None
) -> VPEuclidean:
    """Atom types as 7 bits of Z - 1 in {-1, +1} under the VP-SDE (section 3.3, variant C-AB; Chen et al., 2023).

    The network predicts x_0. The loss takes its answer as it is; every move clamps it to [-1, 1].

    Args:
        schedule, eta: see ``VPEuclidean``.
        elements: atomic numbers that samples may contain, see ``CodeBook``; None: all.

    Raises:
        KldmError: an option out of range.
    """
    codec = attrs.evolve(ANALOG_BITS, elements=elements)
    return VPEuclidean(codec=codec, schedule=schedule, parameterization="x0", eta=eta)


@process("bits_flow.v1")
def bits_flow(
    *,
    parameterization: Literal["velocity", "x0"] = "velocity",
    anti_annealing: float = 0.0,
    elements: tuple[int, ...] | None = None,
) -> EuclideanFlow:
    """Atom types as 7 bits of Z - 1 in {-1, +1}, on straight lines from N(0, I) (FlowMM, Miller et al., 2024; Chen et
    al., 2023).

    The loss takes the network's answer as it is; every move clamps the x_0 that it implies to [-1, 1], within which
    the exact one lies.

    Args:
        parameterization, anti_annealing: see ``EuclideanFlow``.
        elements: atomic numbers that samples may contain, see ``CodeBook``; None: all.

    Raises:
        KldmError: an option out of range.
    """
    codec = attrs.evolve(ANALOG_BITS, elements=elements)
    return EuclideanFlow(codec=codec, parameterization=parameterization, anti_annealing=anti_annealing)
