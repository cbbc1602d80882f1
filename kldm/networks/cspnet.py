"""CSPNet, the network of DiffCSP."""

from kldm.interfaces import Interface
from kldm.networks.features import TimeEmbedding
from kldm.networks.pair_network import PairNetwork
from kldm.networks.plain import PlainEvaluation
from kldm.registry import network


@network("cspnet.v1")
class CSPNet(PairNetwork):
    """The network of DiffCSP (Jiao et al., 2023, section 4.2): messages over all pairs, of an atom to itself as well.

    A linear map predicts scores; a lattice that is diffused as a matrix L enters as L L^T and is answered as a
    matrix times L. A velocity is not needed; one that is read enters the messages as in ``CSPVNet``.

    Args:
        interface, hidden, layers, time_features, frequencies, time_embedding: see ``PairNetwork``; the defaults are
            the paper's.
    """

    self_edges = True
    tangent_head = "linear"

    def __init__(
        self,
        interface: Interface,
        /,
        *,
        hidden: int = 512,
        layers: int = 6,
        time_features: int = 256,
        frequencies: int = 128,
        time_embedding: TimeEmbedding = "sinusoidal",
    ) -> None:
        super().__init__(interface, hidden, layers, time_features, frequencies, time_embedding)


@network("cspnet_plain.v1")
class CSPNetPlain(PlainEvaluation, CSPNet):
    """The network of DiffCSP in torch-geometric: the same function as ``CSPNet``, to be read."""
