"""CSPVNet, evaluated with about a third of the arithmetic of the readable form in ``cspvnet_plain``."""

from torch import Tensor, split
from torch.nn.functional import linear

from kldm.crystals import Layout
from kldm.interfaces import Interface
from kldm.networks.features import TimeEmbedding, sinusoids
from kldm.networks.message import message_block
from kldm.networks.parts import CSPVNetBase, Layer
from kldm.registry import network


@network("cspvnet.v1")
class CSPVNet(CSPVNetBase):
    """The network of KLDM (Appendix I.2): messages over all ordered pairs of atoms of a crystal.

    The same function of the same parameters as ``CSPVNetPlain``, to rounding. The first linear map of the messages is
    the dear one; its input [h_i, h_j, crystal, Linear(v_j - v_i), sin, cos] is never built. Instead
    - the parts of h_i, h_j, crystal and v are mapped once per atom or crystal and then gathered,
    - the two linear maps that v_j - v_i goes through are multiplied into one,
    - sin and cos of the coordinate differences are computed once per call, and for i < j alone: for the other
      direction the cosine is the same and the sine changes its sign.

    Args:
        interface: exactly one periodic channel and at most one tangent channel of width 3 per atom; token and real
            channels per atom; real channels per crystal. Predicts tangent, real and token channels per atom and real
            ones per crystal.
        hidden, layers, time_features, frequencies, time_embedding: see ``CSPVNetBase``; the defaults are the paper's.
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

    def evaluate(self, nodes: Tensor, fractional: Tensor, velocity: Tensor, crystal: Tensor, layout: Layout) -> Tensor:
        pairs = layout.pairs
        # The sum of an atom alone is zero, and may be divided by one.
        others = layout.per_atom(layout.num_atoms - 1).clamp(min=1).unsqueeze(-1)
        difference = fractional.index_select(0, pairs.j) - fractional.index_select(0, pairs.i)
        sin, cos = (wave.to(nodes.dtype) for wave in sinusoids(difference, self.frequencies))
        for layer in self.layers:
            assert isinstance(layer, Layer)
            normed = layer.norm(nodes)
            to, of, per_crystal, moving, odd, even = split(layer.message_in.weight, layer.widths, 1)
            common = linear(crystal, per_crystal, layer.message_in.bias)
            receiver, sender = linear(normed, to), linear(normed, of)
            if layer.velocity is not None:
                drift = linear(velocity, moving @ layer.velocity.weight)
                receiver, sender = receiver - drift, sender + drift
                common = common + moving @ layer.velocity.bias
            receiver = receiver + layout.per_atom(common)
            out = layer.message_out
            total = message_block(receiver, sender, linear(cos, even), linear(sin, odd), out.weight, out.bias, pairs)
            nodes = layer.update(nodes, normed, total / others)
        return nodes
