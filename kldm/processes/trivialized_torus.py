"""KLDM's diffusion of fractional coordinates: noise enters velocities, which carry the coordinates along the torus."""

from math import isfinite, pi
from typing import Literal

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, Correction, Latent, Noised, Prediction, Step
from kldm.processes.kinetic import Kernel
from kldm.processes.langevin import langevin_size
from kldm.registry import process
from kldm.torus import score_mean_square, unit, wrap

_TURN = 2 * pi  # inside: angles and radians per time; in the latent: fractions of a turn, v / (2 pi)


@process("trivialized_torus.v1")
@attrs.frozen(kw_only=True)
class TrivializedTorus:
    """Trivialized diffusion on the torus (sections 3.1 and 3.2, Algorithms 1, 3 and 4).

    Angles theta = 2 pi f and velocities v follow Eq. 12 up to the time t = ``horizon`` s. Noising draws from the kernel
    of Eq. 16; the network learns the score d log p / d v_t of Eq. 18. At the default horizon of 2 the kernel is not yet
    uniform: the standard deviation of r is 1.23 rad, yet f is drawn uniformly at s = 1.

    Args:
        parameterization: ``simplified``: the network predicts g / sqrt(n(sigma_r)), where g = d/dmu_r log WN is the
            only unknown of the score (Eq. 19); ``direct``: it predicts the whole score.
        initial_velocity_std: standard deviation of v_0, which the reverse process must then undo; ``direct`` only.
        zero_net_translation: project velocities, noise, target and prediction to zero mean over the atoms of each
            crystal (section 3.2).
        horizon: t at s = 1.
        variance_floor: added to sigma_v^2 and sigma_r^2; bounds the scores of the last steps.
        loss_weight: ``uniform``, or ``inverse_square_target`` for 1 / E[target^2] at each time; ``direct`` only.

    Raises:
        KldmError: an option out of range, or one that the parameterisation does not have.
    """

    parameterization: Literal["simplified", "direct"] = "simplified"
    initial_velocity_std: float = 0.0
    zero_net_translation: bool = True
    horizon: float = 2.0
    variance_floor: float = 1e-6
    loss_weight: Literal["uniform", "inverse_square_target"] = "uniform"

    def __attrs_post_init__(self) -> None:
        for name, good, wanted in (
            ("horizon", self.horizon > 0 and isfinite(self.horizon), "a positive number"),
            ("variance_floor", 0 <= self.variance_floor < 1, "a number in [0, 1)"),
            ("initial_velocity_std", 0 <= self.initial_velocity_std < 1e6, "a number from 0"),
            ("parameterization", self.parameterization in ("simplified", "direct"), "'simplified' or 'direct'"),
            ("loss_weight", self.loss_weight in ("uniform", "inverse_square_target"), "a known weight"),
        ):
            if not good:
                raise KldmError(f"{name} must be {wanted}, not {getattr(self, name)!r}", place="trivialized_torus")
        for name, used in (
            ("initial_velocity_std", self.initial_velocity_std > 0),
            ("loss_weight", self.loss_weight != "uniform"),
        ):
            if used and self.parameterization == "simplified":
                raise KldmError(
                    f"{name} = {getattr(self, name)!r} needs the direct parameterization",
                    place="trivialized_torus",
                    remedy='set parameterization = "direct" or leave the option out',
                )

    @property
    def reads(self) -> tuple[Channel, ...]:
        return (Channel("fractional", 3, "atom", "periodic"), Channel("velocity", 3, "atom", "tangent"))

    @property
    def predicts(self) -> tuple[Channel, ...]:
        return (Channel("velocity", 3, "atom", "tangent"),)

    def prior(self, given: Crystals, rng: torch.Generator) -> Latent:
        """v ~ N(0, I), f ~ U[0, 1)."""
        like = given.fractional
        fractional = torch.rand(like.shape, generator=rng, dtype=like.dtype, device=like.device)
        return {"fractional": fractional, "velocity": self._normal(like, given.layout, rng) / _TURN}

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        """A draw from the kernel of Eq. 16 and the target (Algorithm 1)."""
        like, layout = clean.fractional, clean.layout
        kernel = self._kernel(s, layout, like)
        start = torch.zeros_like(like)
        if self.initial_velocity_std > 0:
            start = self.initial_velocity_std * self._normal(like, layout, rng)
        push = kernel.velocity_variance.sqrt() * self._normal(like, layout, rng)
        displacement = kernel.position_variance.sqrt() * self._normal(like, layout, rng)
        velocity = kernel.decay * start + push
        r = kernel.gain * (velocity + start) + displacement
        latent = {"fractional": unit(like + wrap(r) / _TURN), "velocity": velocity / _TURN}
        g = self._free(kernel.displacement_score(displacement), layout)
        if self.parameterization == "simplified":
            return Noised(latent, {"velocity": g / score_mean_square(kernel.position_variance.sqrt()).sqrt()})
        return Noised(latent, {"velocity": kernel.velocity_score(g, push)})

    def loss(self, prediction: Prediction, noised: Noised, s: Tensor, layout: Layout) -> Tensor:
        """Mean square error over atoms and axes.

        With ``inverse_square_target`` divided by E[target^2] = tanh(t/2)^2 n(sigma_r) + 1 / sigma_v^2, the expectation
        over the kernel for one coordinate before the projection.
        """
        target = noised.target["velocity"]
        error = (self._free(prediction["velocity"], layout) - target).square()
        if self.loss_weight == "inverse_square_target":
            kernel = self._kernel(s, layout, target)
            known = score_mean_square(kernel.position_variance.sqrt())
            error = error / (kernel.gain.square() * known + 1 / kernel.velocity_variance)
        return error.mean()

    def denoise(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Exponential integrator (Algorithm 3): v <- e^h v + 2 (e^h - 1) S + sqrt(e^2h - 1) eps."""
        h = self._duration(step, latent["fractional"])
        velocity, score = self._state(latent, prediction, step.s, step.layout)
        noise = torch.expm1(2 * h).sqrt() * self._normal(velocity, step.layout, step.rng)
        return self._carry(latent, torch.exp(h) * velocity + 2 * torch.expm1(h) * score + noise, h)

    def flow(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Probability flow by the same integrator: no noise and half the score, v <- e^h v + (e^h - 1) S."""
        h = self._duration(step, latent["fractional"])
        velocity, score = self._state(latent, prediction, step.s, step.layout)
        return self._carry(latent, torch.exp(h) * velocity + torch.expm1(h) * score, h)

    def predict(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Predictor of Algorithm 4: v <- rho v + c S, rho = e^h, c = (rho sigma_v(t) - sigma_v(t - h)) sigma_v(t)."""
        h = self._duration(step, latent["fractional"])
        velocity, score = self._state(latent, prediction, step.s, step.layout)
        before = self._kernel(step.s, step.layout, velocity).velocity_variance.sqrt()
        after = self._kernel(step.r, step.layout, velocity).velocity_variance.sqrt()
        rho = torch.exp(h)
        return self._carry(latent, rho * velocity + (rho * before - after) * before * score, h)

    def correct(self, latent: Latent, prediction: Prediction, step: Step, correction: Correction) -> Latent:
        """Corrector of Algorithm 4: v <- v + delta S + sqrt(2 delta) eps, delta = tau / mean(S^2) of each crystal.

        With ``correction.positions`` the angles move by -h v once more, h the length of the step.
        """
        layout = step.layout
        velocity, score = self._state(latent, prediction, step.now, layout)
        delta = langevin_size(layout.mean(score.square()).mean(-1), correction.tau)
        delta = layout.per_atom(delta).unsqueeze(-1)
        velocity = velocity + delta * score + (2 * delta).sqrt() * self._normal(velocity, layout, step.rng)
        if correction.positions:
            return self._carry(latent, velocity, self._duration(step, velocity))
        return {"fractional": latent["fractional"], "velocity": velocity / _TURN}

    def decode(self, latent: Latent, into: Crystals) -> Crystals:
        return attrs.evolve(into, fractional=unit(latent["fractional"]))

    def _state(self, latent: Latent, prediction: Prediction, s: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Velocity v and full score S, [N, 3] both, in radians, from the network's output at time s."""
        velocity, output = latent["velocity"] * _TURN, self._free(prediction["velocity"], layout)
        if self.parameterization == "direct":
            return velocity, output
        kernel = self._kernel(s, layout, velocity)
        g = output * score_mean_square(kernel.position_variance.sqrt()).sqrt()
        return velocity, kernel.velocity_score(g, velocity)

    def _carry(self, latent: Latent, velocity: Tensor, h: Tensor) -> Latent:
        """The latent with this new velocity, and its positions moved back along it for a time h."""
        return {"fractional": unit(latent["fractional"] - h * velocity / _TURN), "velocity": velocity / _TURN}

    def _kernel(self, s: Tensor, layout: Layout, like: Tensor) -> Kernel:
        """The kernel at unit times s [B], its numbers [N, 1]."""
        t = self.horizon * layout.per_atom(s.to(like.dtype)).unsqueeze(-1)
        return Kernel.at(t, self.variance_floor)

    def _duration(self, step: Step, like: Tensor) -> Tensor:
        """h = horizon (s - r), [N, 1]."""
        return self.horizon * step.layout.per_atom((step.s - step.r).to(like.dtype)).unsqueeze(-1)

    def _normal(self, like: Tensor, layout: Layout, rng: torch.Generator) -> Tensor:
        draw = torch.randn(like.shape, generator=rng, dtype=like.dtype, device=like.device)
        return self._free(draw, layout)

    def _free(self, values: Tensor, layout: Layout) -> Tensor:
        """Values without net translation, where that is asked for."""
        return layout.centred(values) if self.zero_net_translation else values
