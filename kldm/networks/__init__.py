"""Score networks. Importing this package puts them on the ``networks`` shelf."""

from kldm.networks.cspnet import CSPNet
from kldm.networks.cspvnet import CSPVNet

__all__ = ["CSPNet", "CSPVNet"]
