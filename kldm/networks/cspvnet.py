"""CSPVNet, the network of KLDM."""

from kldm.interfaces import Interface
from kldm.networks.features import TimeEmbedding
from kldm.networks.pair_network import PairNetwork
from kldm.networks.plain import PlainEvaluation
from kldm.registry import network


@network("cspvnet.v1")
class CSPVNet(PairNetwork):
    """The network of KLDM (Appendix I.2): messages over all ordered pairs of atoms of a crystal.

    An atom sends no message to itself; two layers predict velocities and scores.

    Args:
        interface, hidden, layers, time_features, frequencies, time_embedding: see ``PairNetwork``; the defaults are
            the paper's.
    """

    self_edges = False
    tangent_head = "mlp"

    def __init__(
        self,
        interface: Interface,
        /,
        *,
        hidden: int = 512,
        layers: int = 6,
        time_features: int = 256,
        frequencies: int = 128,
        time_embedding: TimeEmbedding = "fourier",
    ) -> None:
        super().__init__(interface, hidden, layers, time_features, frequencies, time_embedding)


@network("cspvnet_plain.v1")
class CSPVNetPlain(PlainEvaluation, CSPVNet):
    """The network of KLDM (Appendix I.2) in torch-geometric: the same function as ``CSPVNet``, to be read."""
