"""KLDM's diffusion of fractional coordinates: noise enters velocities, which carry the coordinates along the torus."""

from collections.abc import Mapping
from typing import Literal

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, Latent, Move, Noised, Prediction, Step
from kldm.processes.draws import normal, uniform
from kldm.processes.kinetic import Joint, Kernel, flow, posterior, velocity_score, velocity_variance
from kldm.processes.langevin import langevin_size
from kldm.processes.torus_process import TorusProcess
from kldm.registry import process
from kldm.torus import TURN, score_root_mean_square, unit, wrap, wrapped_normal_score
from kldm.validators import one_of, within


@process("trivialized_torus.v1")
@attrs.frozen(kw_only=True)
class TrivializedTorus(TorusProcess):
    """Trivialized diffusion on the torus (sections 3.1 and 3.2, Algorithms 1, 3 and 4).

    Angles theta = 2 pi f and velocities v follow Eq. 12 up to the time t = ``horizon`` s. Noising draws from the kernel
    of Eq. 16; the network learns the score d log p / d v_t of Eq. 18. At the default horizon of 2 the kernel is not yet
    uniform: the standard deviation of r is 1.23 rad, yet f is drawn uniformly at s = 1. Even with the exact score two
    crystals of weights 0.7 and 0.3 are then drawn with about 0.6 and 0.4; from a horizon of 3 on the weights are right.

    With v_0 = 0 the kernel is N(v_t; 0, sigma_v^2) WN(y; theta_0, sigma_r^2) in y = theta_t - tanh(t/2) v_t: of the two
    only y depends on theta_0. A network that is shown theta and v must first undo the shift between them;
    ``shows = "displacement_free"`` shows it y instead.

    Args:
        shows: what the network reads: ``state``, f and v as published, or ``displacement_free``, only y / (2 pi)
            (``simplified`` only).
        displacement_noise: whether eps_r is ``projected`` to zero mean over the atoms too, as published, or ``free``.
            The target is the score of independent wrapped normals, which projected noise is not: the regression
            target is off by 0.7 % at s = 1 for four atoms and a horizon of 2, by 20 % at 3 and 59 % at 4. With free
            noise and the projected target it is exact at any horizon. It matters only with ``zero_net_translation``.
        parameterization: ``simplified``: the network predicts g / sqrt(n(sigma_r)), where g = d/dmu_r log WN is the
            only unknown of the score (Eq. 19); ``direct``: it predicts the whole score.
        initial_velocity_std: standard deviation of v_0, which the reverse process must then undo; ``direct`` only.
        zero_net_translation: project velocities, noise, target and prediction to zero mean over the atoms of each
            crystal (section 3.2).
        horizon: t at s = 1.
        variance_floor: added to sigma_v^2 and sigma_r^2; bounds the scores of the last steps.
        loss_weight: ``uniform``, or ``inverse_square_target`` for 1 / E[target^2] at each time; ``direct`` only.

    Raises:
        KldmError: an option is out of range, or one that the parameterization does not have.
    """

    parameterization: Literal["simplified", "direct"] = attrs.field(default="simplified", validator=one_of())
    initial_velocity_std: float = attrs.field(default=0.0, validator=within(0, 1e6, ends="low"))
    zero_net_translation: bool = True
    horizon: float = attrs.field(default=2.0, validator=within(0, 100, ends="high"))
    variance_floor: float = attrs.field(default=1e-6, validator=within(0, 1, ends="low"))
    loss_weight: Literal["uniform", "inverse_square_target"] = attrs.field(default="uniform", validator=one_of())
    shows: Literal["state", "displacement_free"] = attrs.field(default="state", validator=one_of())
    displacement_noise: Literal["projected", "free"] = attrs.field(default="projected", validator=one_of())

    def __attrs_post_init__(self) -> None:
        if self.parameterization == "simplified":
            for name, default in (("initial_velocity_std", 0.0), ("loss_weight", "uniform")):
                if (value := getattr(self, name)) != default:
                    problem = f"must be {default} with the simplified parameterization, got {value}"
                    raise KldmError(problem, place=name, remedy='set parameterization = "direct"')
        elif self.shows == "displacement_free":
            problem = "must be state with the direct parameterization, which predicts from the velocity too"
            raise KldmError(problem, place="shows", remedy='set parameterization = "simplified"')

    @property
    def reads(self) -> tuple[Channel, ...]:
        fractional = Channel("fractional", 3, "atom", "periodic")
        return (fractional,) if self.shows == "displacement_free" else (fractional, self.predicts[0])

    def shown(self, latent: Latent, s: Tensor, layout: Layout) -> Latent:
        """The latent, or y / (2 pi) = f - tanh(t/2) v / (2 pi) under the name of the coordinates."""
        if self.shows == "state":
            return latent
        gain = torch.tanh(self.horizon * s.to(latent["fractional"].dtype) / 2)
        return {"fractional": unit(self._free_of_displacement(latent, gain, layout))}

    def log_noise(self, s: Tensor) -> Tensor:
        """log sigma_r at unit times s of any shape, in radians."""
        return self._kernel(s, s).position_std.log()

    @property
    def predicts(self) -> tuple[Channel, ...]:
        return (Channel("velocity", 3, "atom", "tangent"),)

    @property
    def moves(self) -> Mapping[str, Move]:
        return {
            "denoise": Move(self.denoise),
            "flow": Move(self.flow),
            "predict": Move(self.predict),
            "correct": Move(self.correct, ends="now"),
            "flow_given": Move(self.flow_given, estimate=self.estimate),
            "draw_given": Move(self.draw_given, estimate=self.estimate),
        }

    def prior(self, given: Crystals, rng: torch.Generator) -> Latent:
        """v ~ N(0, I), f ~ U[0, 1)."""
        like = given.fractional
        return {"fractional": uniform(like, rng), "velocity": self._normal(like, given.layout, rng) / TURN}

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        """A draw from the kernel of Eq. 16 and the target (Algorithm 1)."""
        layout, kernel = clean.layout, self._kernel(s, clean.fractional)
        simplified = self.parameterization == "simplified"
        gain, decay, sigma_v, sigma_r, size = layout.columns(
            kernel.gain,
            kernel.decay,
            kernel.velocity_variance.sqrt(),
            kernel.position_std,
            kernel.score_size if simplified else kernel.velocity_variance,
        )
        eps_v, eps_r = self._normals(clean.fractional, rng).unbind(1)
        eps_v = self._projected(eps_v, layout)
        if self.displacement_noise == "projected":
            eps_r = self._projected(eps_r, layout)
        v_0 = torch.zeros_like(eps_v)
        if self.initial_velocity_std > 0:
            v_0 = self.initial_velocity_std * self._normal(eps_v, layout, rng)
        velocity, displacement = decay * v_0 + sigma_v * eps_v, sigma_r * eps_r
        r = gain * (velocity + v_0) + displacement
        g = self._projected(wrapped_normal_score(displacement, sigma_r.square(), kernel.widest), layout)
        target = g / size if simplified else velocity_score(g, sigma_v * eps_v, gain, size)
        latent = {"fractional": unit(clean.fractional + r / TURN), "velocity": velocity / TURN}
        return Noised(latent, {"velocity": target})

    def loss(self, prediction: Prediction, noised: Noised, s: Tensor, layout: Layout) -> Tensor:
        """Mean square error over atoms and axes.

        With ``inverse_square_target`` divided by E[target^2] = tanh(t/2)^2 n(sigma_r) + 1 / sigma_v^2, the expectation
        over the kernel for one coordinate before the projection.
        """
        target = noised.target["velocity"]
        error = (self._projected(prediction["velocity"], layout) - target).square()
        if self.loss_weight == "inverse_square_target":
            kernel = self._kernel(s, target)
            expected = (kernel.gain * kernel.score_size).square() + 1 / kernel.velocity_variance
            error = error / layout.per_atom(expected).unsqueeze(-1)
        return error.mean()

    def denoise(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Exponential integrator (Algorithm 3): v <- e^h v + 2 (e^h - 1) S + sqrt(e^2h - 1) eps."""
        layout, h = step.layout, self._duration(step, latent["fractional"])
        velocity, score = self._state(latent, prediction, step.s, layout)
        growth, push, spread, h = layout.columns(h.exp(), 2 * h.expm1(), (2 * h).expm1().sqrt(), h)
        noise = self._normal(velocity, layout, step.rng)
        return self._carry(latent, growth * velocity + push * score + spread * noise, h)

    def flow(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Probability flow by the same integrator: no noise and half the score, v <- e^h v + (e^h - 1) S."""
        h = self._duration(step, latent["fractional"])
        velocity, score = self._state(latent, prediction, step.s, step.layout)
        growth, push, h = step.layout.columns(h.exp(), h.expm1(), h)
        return self._carry(latent, growth * velocity + push * score, h)

    def predict(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Predictor of Algorithm 4: v <- rho v + c S, rho = e^h, c = (rho sigma_v(t) - sigma_v(t - h)) sigma_v(t)."""
        h = self._duration(step, latent["fractional"])
        velocity, score = self._state(latent, prediction, step.s, step.layout)
        before, after = velocity_variance(self._times(step, h), self.variance_floor).sqrt().unbind()
        rho = h.exp()
        rho, push, h = step.layout.columns(rho, (rho * before - after) * before, h)
        return self._carry(latent, rho * velocity + push * score, h)

    def correct(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Corrector of Algorithm 4: v <- v + delta S + sqrt(2 delta) eps, delta = tau / S^2.

        S^2 is the mean over each crystal, or with ``expected`` the expectation of one coordinate before the projection,
        tanh(t/2)^2 n(sigma_r) + 1 / sigma_v^2 for v_0 = 0, and otherwise the same with the numbers of ``Joint``. With
        ``Correction.positions`` the angles move by -h v once more, h the length of the step; a step then moves them
        twice. Neither preserves the law: with the exact score of crystals whose atoms have a standard deviation of 0.25
        rad, the samples of 100 steps have 0.27 with the position moves and 0.30 without.
        """
        layout = step.layout
        velocity, score = self._state(latent, prediction, step.now, layout)
        if step.correction.step_size == "expected":
            joint = self._joint(step.now, velocity)
            size = score_root_mean_square(joint.position_std)
            square = (joint.gain * size).square() + joint.velocity_std.square().reciprocal()
        else:
            square = layout.mean(score.square()).mean(-1)
        delta = langevin_size(square, step.correction.tau)
        delta, h = layout.columns(delta, self._duration(step, velocity))
        velocity = velocity + delta * score + (2 * delta).sqrt() * self._normal(velocity, layout, step.rng)
        if step.correction.positions:
            return self._carry(latent, velocity, h)
        return {"fractional": latent["fractional"], "velocity": velocity / TURN}

    def estimate(self, latent: Latent, prediction: Prediction, s: Tensor, layout: Layout) -> Latent:
        """theta_0 = y - sigma_r^2 g, the mean of the law's posterior by Tweedie's formula; v_0 = 0."""
        joint = self._joint(s, latent["fractional"])
        gain, velocity_std, position_std = layout.columns(joint.gain, joint.velocity_std, joint.position_std)
        output = self._projected(prediction["velocity"], layout)
        if self.parameterization == "simplified":
            g = output * layout.per_atom(self._kernel(s, output).score_size).unsqueeze(-1)
        else:
            g = (output + latent["velocity"] * TURN / velocity_std.square()) / gain
        y = self._free_of_displacement(latent, joint.gain, layout)
        clean = y - position_std.square() * g / TURN
        return {"fractional": unit(clean), "velocity": torch.zeros_like(clean)}

    def flow_given(self, latent: Latent, clean: Latent, step: Step) -> Latent:
        """The probability flow given theta_0: a rotation of (w_1, w_2); see ``kinetic.flow``."""
        t, r = self._times(step, latent["fractional"]).unbind()
        w_1, w_2 = self._whitened(latent, clean, step)
        cos, sin = step.layout.columns(*flow(t, r, self.horizon, self.initial_velocity_std))
        return self._coloured(clean, cos * w_1 + sin * w_2, cos * w_2 - sin * w_1, step)

    def draw_given(self, latent: Latent, clean: Latent, step: Step) -> Latent:
        """A draw from p(f_r, v_r | f_s, v_s, f_0), Gaussian on the line that covers the circle; see ``posterior``."""
        t, r = self._times(step, latent["fractional"]).unbind()
        w_1, w_2 = self._whitened(latent, clean, step)
        a, b, c, spread_1, spread_2, shared = step.layout.columns(
            *posterior(t, r, self.horizon, self.initial_velocity_std)
        )
        n_1, n_2 = self._projected(self._normals(w_1, step.rng), step.layout).unbind(1)
        return self._coloured(clean, a * w_1 + b * w_2 + spread_1 * n_1 + shared * n_2, c * w_2 + spread_2 * n_2, step)

    def _whitened(self, latent: Latent, clean: Latent, step: Step) -> tuple[Tensor, Tensor]:
        """w_1 and w_2 of ``Joint`` at s, [N, 3] each; of the images of the displacement the nearest one."""
        joint = self._joint(step.s, latent["fractional"])
        velocity_std, position_std = step.layout.columns(joint.velocity_std, joint.position_std)
        y = self._free_of_displacement(latent, joint.gain, step.layout)
        return latent["velocity"] * TURN / velocity_std, wrap(y - clean["fractional"], 1.0) * TURN / position_std

    def _coloured(self, clean: Latent, w_1: Tensor, w_2: Tensor, step: Step) -> Latent:
        """The latent with these w_1 and w_2 at r; at r = 0 itself, where only the floor of the variances is left, the
        clean one."""
        joint = self._joint(step.r, w_1)
        stds = torch.stack([joint.velocity_std, joint.position_std]) / TURN
        ends = stds.masked_fill(step.r <= 0, 0.0).unbind()
        gain, velocity_std, position_std = step.layout.columns(joint.gain, *ends)
        velocity = velocity_std * w_1
        return {
            "fractional": unit(clean["fractional"] + gain * velocity + position_std * w_2),
            "velocity": velocity,
        }

    def _free_of_displacement(self, latent: Latent, gain: Tensor, layout: Layout) -> Tensor:
        """y / (2 pi) = f - gain v / (2 pi), not yet wrapped, with a gain for each crystal."""
        return latent["fractional"] - layout.per_atom(gain).unsqueeze(-1) * latent["velocity"]

    def _state(self, latent: Latent, prediction: Prediction, s: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Velocity v and full score S, [N, 3] both, in radians, from the network's output at time s."""
        velocity, output = latent["velocity"] * TURN, self._projected(prediction["velocity"], layout)
        if self.parameterization == "direct":
            return velocity, output
        kernel = self._kernel(s, velocity)
        gain, variance = layout.columns(kernel.gain * kernel.score_size, kernel.velocity_variance)
        return velocity, velocity_score(output, velocity, gain, variance)

    def _carry(self, latent: Latent, velocity: Tensor, h: Tensor) -> Latent:
        """The latent with this new velocity, and its positions moved back along it for a time h."""
        velocity = velocity / TURN
        return {"fractional": unit(latent["fractional"] - h * velocity), "velocity": velocity}

    def _kernel(self, s: Tensor, like: Tensor) -> Kernel:
        """The kernel at unit times s, one for each crystal."""
        return Kernel.at(self.horizon * s.to(like.dtype), self.variance_floor, self.horizon)

    def _joint(self, s: Tensor, like: Tensor) -> Joint:
        """The law of displacements and velocities at unit times s, one for each crystal."""
        t = self.horizon * s.to(like.dtype)
        return Joint.at(t, self.variance_floor, self.horizon, self.initial_velocity_std)

    def _times(self, step: Step, like: Tensor) -> Tensor:
        """horizon s and horizon r, [2, B]."""
        return self.horizon * torch.stack([step.s, step.r]).to(like.dtype)

    def _duration(self, step: Step, like: Tensor) -> Tensor:
        """h = horizon (s - r), [B]."""
        return self.horizon * (step.s - step.r).to(like.dtype)

    def _normal(self, like: Tensor, layout: Layout, rng: torch.Generator) -> Tensor:
        """Noise of the shape of ``like`` [N, 3]."""
        return self._projected(normal(like, rng), layout)

    def _normals(self, like: Tensor, rng: torch.Generator) -> Tensor:
        """Two draws for every number of ``like``, [N, 2, 3], with their net translation."""
        return normal(like, rng, (len(like), 2, 3))
