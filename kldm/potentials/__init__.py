"""Potentials: what structures are relaxed with. Importing this package puts them on their shelf, not their weights
into memory: each imports its own package when it is used."""

from kldm.potentials.chgnet import CHGNet
from kldm.potentials.emt import EMT
from kldm.potentials.mattersim import MatterSim

__all__ = ["EMT", "CHGNet", "MatterSim"]
