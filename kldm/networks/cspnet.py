"""CSPNet, the network of DiffCSP."""

from kldm.interfaces import Interface
from kldm.networks.cspvnet import CSPVNet, TangentHead
from kldm.networks.features import TimeEmbedding
from kldm.registry import network


@network("cspnet.v1")
class CSPNet(CSPVNet):
    """The network of DiffCSP (Jiao et al., 2023, section 4.2): ``CSPVNet`` with other defaults.

    An atom sends a message to itself too, the time is sinusoidal as in transformers, and a linear map predicts scores.
    A lattice that is diffused as a matrix L enters as L L^T and is predicted as a matrix times L. A velocity is not
    needed; if one is read, it enters the messages as in ``CSPVNet``.
    """

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
        self_edges: bool = True,
        tangent_head: TangentHead = "linear",
    ) -> None:
        super().__init__(
            interface,
            hidden=hidden,
            layers=layers,
            time_features=time_features,
            frequencies=frequencies,
            time_embedding=time_embedding,
            self_edges=self_edges,
            tangent_head=tangent_head,
        )
