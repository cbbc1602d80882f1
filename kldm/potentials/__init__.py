"""Potentials, which relax structures. Importing this package registers them, but loads no weights: each imports its own
package when it is used."""

from kldm.potentials.chgnet import CHGNet
from kldm.potentials.emt import EMT
from kldm.potentials.mattersim import MatterSim

__all__ = ["EMT", "CHGNet", "MatterSim"]
