"""Score networks. Importing this package puts them on the ``networks`` shelf."""

from kldm.networks.cspvnet import CSPVNet
from kldm.networks.cspvnet_plain import CSPVNetPlain

__all__ = ["CSPVNet", "CSPVNetPlain"]
