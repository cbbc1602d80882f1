"""Flow matching of fractional coordinates: every atom moves along its geodesic from noise to its place."""

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.interfaces import OF_SAMPLING, Channel, Latent, Move, Noised, Prediction, Step
from kldm.processes.draws import uniform
from kldm.processes.euler import stride
from kldm.processes.torus_process import TorusProcess
from kldm.registry import process
from kldm.torus import towards, unit, wrap
from kldm.validators import within


@process("torus_flow.v1")
@attrs.frozen(kw_only=True)
class TorusFlow(TorusProcess):
    """Riemannian flow matching on the torus (Chen and Lipman, 2024) as in FlowMM (Miller et al., 2024).

    With the flow time t = 1 - s, noise f_1 ~ U[0, 1) at s = 1 and data f_0 at s = 0, the shortest displacement is
    u = wrap(f_0 - f_1) in [-1/2, 1/2), and an atom moves along f_s = f_1 + t u modulo 1. The network predicts
    E[df/dt | f_s] = E[u | f_s] in fractions of a cell per unit of t. Its mean over the atoms of a crystal is a
    translation, which leaves the crystal the same: FlowMM removes it from target and prediction.

    The sampler is plain Euler along the velocity, on the uniform grid: ``probability_flow.v1`` with ``flow``.
    ``denoise`` is the same deterministic step, so that ``euler_maruyama.v1`` does the same.

    Args:
        zero_net_translation: project target and prediction to zero mean over the atoms of each crystal.
        anti_annealing: a of the step f <- f + (s - r) (1 + a t) v; 0 is Euler's method. See ``stride``.

    Raises:
        KldmError: an option out of range.
    """

    zero_net_translation: bool = True
    anti_annealing: float = attrs.field(default=0.0, validator=within(0, 1000), metadata=OF_SAMPLING)

    @property
    def predicts(self) -> tuple[Channel, ...]:
        return (Channel("flow", 3, "atom", "tangent"),)

    @property
    def moves(self) -> Mapping[str, Move]:
        # Only the prior is random, so that a draw follows the flow.
        flow, flow_given = Move(self.flow), Move(self.flow_given, estimate=self.estimate)
        return {"denoise": flow, "flow": flow, "flow_given": flow_given, "draw_given": flow_given}

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        """The point of the geodesic at s, counted from f_0, which rounding must not move: f_0 - s u."""
        f_0 = clean.fractional
        u = wrap(f_0 - uniform(f_0, rng), 1.0)
        s = clean.layout.per_atom(s.to(f_0.dtype)).unsqueeze(-1)
        return Noised({"fractional": unit(f_0 - s * u)}, {"flow": self._projected(u, clean.layout)})

    def loss(self, prediction: Prediction, noised: Noised, s: Tensor, layout: Layout) -> Tensor:
        """Mean square error over atoms and axes."""
        return (self._projected(prediction["flow"], layout) - noised.target["flow"]).square().mean()

    def flow(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Euler's step f <- f + (s - r) (1 + a t) v modulo 1."""
        fractional, velocity = latent["fractional"], self._projected(prediction["flow"], step.layout)
        length = step.layout.per_atom(stride(step, self.anti_annealing).to(fractional.dtype)).unsqueeze(-1)
        return {"fractional": unit(fractional + length * velocity)}

    def estimate(self, latent: Latent, prediction: Prediction, s: Tensor, layout: Layout) -> Latent:
        """f_0 = f_s + s v modulo 1."""
        fractional, velocity = latent["fractional"], self._projected(prediction["flow"], layout)
        return {"fractional": unit(fractional + layout.per_atom(s.to(fractional.dtype)).unsqueeze(-1) * velocity)}

    def flow_given(self, latent: Latent, clean: Latent, step: Step) -> Latent:
        """Along the shortest line between f_s and f_0: f_0 + (r / s) wrap(f_s - f_0) modulo 1.

        If s v of a network exceeds half a cell, which it never does in data, this is the other way round the torus.
        """
        f_0 = clean["fractional"]
        share = step.layout.per_atom((step.r / step.s).to(f_0.dtype)).unsqueeze(-1)
        return {"fractional": towards(f_0, latent["fractional"], share)}
