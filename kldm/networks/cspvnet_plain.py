"""CSPVNet as the paper writes it, to be read and to test the fast one against."""

from torch import Tensor

from kldm.crystals import Layout
from kldm.interfaces import Interface
from kldm.networks.features import TimeEmbedding
from kldm.networks.parts import CSPVNetBase, Layer
from kldm.registry import network


@network("cspvnet_plain.v1")
class CSPVNetPlain(CSPVNetBase):
    """The network of KLDM (Appendix I.2) in torch-geometric: every message from its whole concatenated input.

    Takes the arguments and has the parameters of ``CSPVNet``: either loads the other's checkpoints.
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
        time_embedding: TimeEmbedding = "fourier",
    ) -> None:
        super().__init__(interface, hidden, layers, time_features, frequencies, time_embedding)
        # Importing torch-geometric takes seconds: only who builds this network pays for it.
        from kldm.networks.concatenated import ConcatenatedMessages

        self.messages = ConcatenatedMessages(frequencies)

    def evaluate(self, nodes: Tensor, fractional: Tensor, velocity: Tensor, crystal: Tensor, layout: Layout) -> Tensor:
        crystal = layout.per_atom(crystal)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            normed = layer.norm(nodes)
            mean = self.messages(layer, normed, fractional, velocity, crystal, layout.edge_index)
            nodes = layer.update(nodes, normed, mean)
        return nodes
