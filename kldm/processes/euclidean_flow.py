"""Flow matching of real numbers: straight lines from noise to a codec's numbers."""

from collections.abc import Mapping
from typing import Literal, Protocol, Self

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, CrystalStore, Layout
from kldm.interfaces import OF_SAMPLING, Codec, Fits, Json, Latent, Move, Noised, Prediction, Step
from kldm.processes.coded import CodedProcess
from kldm.processes.euler import stride
from kldm.registry import process
from kldm.validators import one_of, within


class NoiseSource(Protocol):
    """A law of the noise at s = 1."""

    def draw(self, like: Crystals, codec: Codec, rng: torch.Generator) -> Tensor:
        """The codec's numbers, [B, C] or [N, C], for crystals of the layout of ``like``."""
        ...


@process("euclidean_flow.v1")
@attrs.frozen(kw_only=True)
class EuclideanFlow(CodedProcess):
    """Conditional flow matching along straight lines (Lipman et al., 2023) on a codec's numbers.

    With the flow time t = 1 - s and noise z, x_s = s z + (1 - s) x_0. The velocity is dx/dt = x_0 - z,
    which is (x_0 - x_s) / s as well: a network that predicts x_0 gives it too, with a loss that weighs late times
    (small s) less. The prediction has the name of the channel that the network reads.

    The sampler is plain Euler along the velocity, on the uniform grid: ``probability_flow.v1`` with ``flow``.
    ``denoise`` is the same deterministic step, so that ``euler_maruyama.v1`` does the same.

    Args:
        codec: which part of a crystal flows, and as which real numbers.
        parameterization: what the network predicts.
        anti_annealing: a of the step x <- x + (s - r) (1 + a t) v; 0 is Euler's method. See ``stride``.
        source: the law of the noise z; None: N(0, I). In a recipe, ``lattice_flow.v1`` uses another.

    Raises:
        KldmError: an option out of range.
    """

    parameterization: Literal["velocity", "x0"] = attrs.field(default="velocity", validator=one_of())
    anti_annealing: float = attrs.field(default=0.0, validator=within(0, 1000), metadata=OF_SAMPLING)
    source: NoiseSource | None = None

    @property
    def moves(self) -> Mapping[str, Move]:
        # Only the prior is random, so that a draw follows the flow.
        flow, flow_given = Move(self.flow), Move(self.flow_given, estimate=self.estimate)
        return {"denoise": flow, "flow": flow, "flow_given": flow_given, "draw_given": flow_given}

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        x_0, noise = self.codec.encode(clean), self._draw(clean, rng)
        s = self._rows(s, clean.layout, x_0)
        target = x_0 if self.parameterization == "x0" else x_0 - noise
        return Noised({self._name: s * noise + (1 - s) * x_0}, {self._name: target})

    def flow(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Euler's step x <- x + (s - r) (1 + a t) v."""
        x = latent[self._name]
        velocity = self._velocity(x, prediction[self._name], self._rows(step.s, step.layout, x))
        return {self._name: x + self._rows(stride(step, self.anti_annealing), step.layout, x) * velocity}

    def estimate(self, latent: Latent, prediction: Prediction, s: Tensor, layout: Layout) -> Latent:
        """x_0 as the network gives it, or x + s v."""
        x = latent[self._name]
        output = prediction[self._name]
        x_0 = output if self.parameterization == "x0" else x + self._rows(s, layout, x) * output
        return {self._name: self._clean(x_0)}

    def flow_given(self, latent: Latent, clean: Latent, step: Step) -> Latent:
        """Along the line through x_s and x_0: x_0 + (r / s) (x_s - x_0), Euler's step without anti-annealing."""
        x_0 = clean[self._name]
        share = self._rows(step.r / step.s, step.layout, x_0)
        return {self._name: x_0 + share * (latent[self._name] - x_0)}

    def fitted(self, train: CrystalStore) -> Self:
        source = self.source.fitted(train) if isinstance(self.source, Fits) else self.source
        return attrs.evolve(super().fitted(train), source=source)

    def statistics(self) -> Mapping[str, Json]:
        return {**super().statistics(), **(self.source.statistics() if isinstance(self.source, Fits) else {})}

    def _draw(self, like: Crystals, rng: torch.Generator) -> Tensor:
        return super()._draw(like, rng) if self.source is None else self.source.draw(like, self.codec, rng)

    def _velocity(self, x: Tensor, output: Tensor, s: Tensor) -> Tensor:
        """The velocity from the network's output at time s > 0, towards the x_0 that ``_clean`` returns."""
        if self.parameterization == "x0":
            return (self._clean(output) - x) / s
        estimate = x + s * output
        x_0 = self._clean(estimate)
        # Where ``_clean`` changed nothing, the network's velocity is kept to the last digit.
        return torch.where(x_0 == estimate, output, (x_0 - x) / s)
