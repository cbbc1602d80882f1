"""Score networks. Importing this package puts them on the ``networks`` shelf."""

from kldm.networks.cspnet import CSPNet, CSPNetPlain
from kldm.networks.cspvnet import CSPVNet, CSPVNetPlain

__all__ = ["CSPNet", "CSPNetPlain", "CSPVNet", "CSPVNetPlain"]
