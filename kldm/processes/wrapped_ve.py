"""DiffCSP's diffusion of fractional coordinates: variance-exploding noise, wrapped onto the torus."""

from collections.abc import Mapping
from math import log

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.errors import KldmError
from kldm.interfaces import OF_SAMPLING, Channel, Latent, Move, Noised, Prediction, Step
from kldm.processes.draws import normal
from kldm.processes.torus_process import TorusProcess
from kldm.registry import process
from kldm.torus import TURN, score_root_mean_square, towards, unit, wrap, wrapped_normal_score
from kldm.validators import above, within


@process("wrapped_ve.v1")
@attrs.frozen(kw_only=True)
class WrappedVE(TorusProcess):
    """f_s = f_0 + sigma(s) eps mod 1, sigma(s) = sigma_min^(1-s) sigma_max^s (Jiao et al., 2023: DiffCSP).

    The network predicts S / sqrt(n(sigma)), where S = d/df_s log WN(f_s | f_0, sigma^2) on the torus of period 1 and
    n = E[S^2]. That quotient is the same in any unit, so it is computed in angles.

    The law at s = 1 is taken for uniform: at sigma_max = 0.5 its first Fourier coefficient is 0.007. As s goes to 0 the
    noise falls to sigma_min, not to 0; the reverse step that ends at r = 0 removes it, as DiffCSP's last level does.

    Args:
        sigma_min, sigma_max: standard deviations at s = 0 and s = 1, in fractions of the cell.
        step_lr: length of a correction at sigma_min, in fractions of the cell squared; the paper's 5e-7 for Perov-5,
            5e-6 for Carbon-24, 1e-5 for MP-20 and MPTS-52. step_lr / sigma_min^2 must stay below 2 for it to converge.
        zero_net_translation: project the target, the prediction and the noise of the reverse moves to zero mean over
            the atoms of each crystal, as KLDM does (its section 3.2); DiffCSP does not. The noise of the forward
            process stays free: the target is the score of independent wrapped normals.
        com_free: whether the noise leaves the periodic centre of mass in place; see ``com_free_ve.v1``.

    Raises:
        KldmError: an option out of range.
    """

    # Above a sigma_max of 1 the score is below 1e-8 of its size at 0.1: nothing is left to learn.
    sigma_min: float = attrs.field(default=0.005, validator=above(0))
    sigma_max: float = attrs.field(default=0.5, validator=within(0, 1, ends="high"))
    step_lr: float = attrs.field(default=1e-5, validator=above(0), metadata=OF_SAMPLING)
    zero_net_translation: bool = False
    com_free: bool = False

    def __attrs_post_init__(self) -> None:
        if self.sigma_min >= self.sigma_max:
            raise KldmError(f"must be below sigma_max = {self.sigma_max}, got {self.sigma_min}", place="sigma_min")
        if self.step_lr >= 2 * self.sigma_min**2:
            problem = f"must be below 2 sigma_min^2 = {2 * self.sigma_min**2:g}, got {self.step_lr}"
            raise KldmError(problem, place="step_lr", remedy="a longer correction diverges at the last levels")
        if self.com_free and not self.zero_net_translation:
            raise KldmError("must be true where com_free is", place="zero_net_translation")

    @property
    def predicts(self) -> tuple[Channel, ...]:
        return (Channel("displacement", 3, "atom", "tangent"),)

    def sigma(self, s: Tensor) -> Tensor:
        """Standard deviation of the noise at unit times s of any shape, in fractions of the cell."""
        return self.sigma_min * torch.exp(log(self.sigma_max / self.sigma_min) * s)

    @property
    def moves(self) -> Mapping[str, Move]:
        return {
            "denoise": Move(self.denoise),
            "flow": Move(self.flow),
            # Algorithm 4: c = (rho sigma_s - sigma_r) sigma_s with rho = 1. DiffCSP's own predictor is ``denoise``.
            "predict": Move(self.flow),
            "correct": Move(self.correct, ends="now"),
            "flow_given": Move(self.flow_given, estimate=self.estimate),
            "draw_given": Move(self.draw_given, estimate=self.estimate),
        }

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        layout, sigma = clean.layout, self._angle(s, clean.fractional)
        sigma, size = layout.columns(sigma, self._size(sigma))
        displacement = self._displacement(sigma * normal(clean.fractional, rng), layout)
        score = self._projected(wrapped_normal_score(displacement, sigma.square(), self._widest), layout)
        # The score by f_s is minus that by the mean.
        return Noised(self._moved(clean.fractional, displacement), {"displacement": -score / size})

    def loss(self, prediction: Prediction, noised: Noised, s: Tensor, layout: Layout) -> Tensor:
        """Mean square error over atoms and axes."""
        return (self._projected(prediction["displacement"], layout) - noised.target["displacement"]).square().mean()

    def denoise(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Ancestral step: f <- f + d S + sqrt(sigma_r^2 d / sigma_s^2) eps, d = sigma_s^2 - sigma_r^2 (Algorithm 2).

        sigma_r counts as 0 at r = 0, so that the last step adds no noise.
        """
        before, after = self._sigmas(step, latent["fractional"])
        d = before.square() - after.square()
        d, kick, size = step.layout.columns(d, after / before * d.sqrt(), self._size(before))
        score = size * self._projected(prediction["displacement"], step.layout)
        return self._moved(latent["fractional"], d * score + kick * self._normal(score, step))

    def flow(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Probability flow df = -sigma S dsigma, one step: f <- f + (sigma_s - sigma_r) sigma_s S, sigma_r = 0 at 0.

        Exact for a normal law, where S = -(f - f_0) / sigma^2.
        """
        before, after = self._sigmas(step, latent["fractional"])
        length, size = step.layout.columns((before - after) * before, self._size(before))
        score = size * self._projected(prediction["displacement"], step.layout)
        return self._moved(latent["fractional"], length * score)

    def correct(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Langevin move f <- f + e S + sqrt(2 e) eps, e = step_lr (sigma / sigma_min)^2 (Algorithm 2).

        No noise in the step that ends at r = 0. The length is the process's own: ``step.correction`` is not used.
        """
        sigma = self._angle(step.now, latent["fractional"])
        e = self.step_lr * (sigma / self.sigma_min).square()
        e, kick, size = step.layout.columns(e, (2 * e).sqrt().masked_fill(step.r <= 0, 0.0), self._size(sigma))
        score = size * self._projected(prediction["displacement"], step.layout)
        return self._moved(latent["fractional"], e * score + kick * self._normal(score, step))

    def log_noise(self, s: Tensor) -> Tensor:
        """log sigma(s) at unit times s of any shape, in radians."""
        return (TURN * self.sigma(s)).log()

    def estimate(self, latent: Latent, prediction: Prediction, s: Tensor, layout: Layout) -> Latent:
        """f_0 = f_s + sigma^2 S modulo 1, by Tweedie's formula."""
        sigma = self._angle(s, latent["fractional"])
        sigma, size = layout.columns(sigma, self._size(sigma))
        displacement = sigma.square() * size * self._projected(prediction["displacement"], layout)
        return self._moved(latent["fractional"], displacement)

    def flow_given(self, latent: Latent, clean: Latent, step: Step) -> Latent:
        """f_0 + (sigma_r / sigma_s) wrap(f_s - f_0) modulo 1, sigma_r = 0 at r = 0."""
        before, after = self._sigmas(step, latent["fractional"])
        share = step.layout.per_atom(after / before).unsqueeze(-1)
        return {"fractional": towards(clean["fractional"], latent["fractional"], share)}

    def draw_given(self, latent: Latent, clean: Latent, step: Step) -> Latent:
        """A draw around f_0 + q wrap(f_s - f_0) with q = sigma_r^2 / sigma_s^2 and the variance sigma_r^2 (1 - q)."""
        before, after = self._sigmas(step, latent["fractional"])
        share = (after / before).square()
        share, spread = step.layout.columns(share, after * (1 - share).clamp(min=0).sqrt())
        middle = towards(clean["fractional"], latent["fractional"], share)
        return self._moved(middle, spread * self._normal(middle, step))

    def _displacement(self, noise: Tensor, layout: Layout) -> Tensor:
        """f_s - f_0 from the noise, [N, 3] both, in radians."""
        if not self.com_free:
            return noise
        centre = torch.atan2(layout.sum(noise.sin()), layout.sum(noise.cos()))
        return wrap(noise - layout.per_atom(centre))

    def _moved(self, fractional: Tensor, displacement: Tensor) -> Latent:
        """The coordinates moved by a displacement in radians, modulo 1."""
        return {"fractional": unit(fractional + displacement / TURN)}

    def _normal(self, like: Tensor, step: Step) -> Tensor:
        """Noise of a reverse move."""
        return self._projected(normal(like, step.rng), step.layout)

    def _size(self, sigma: Tensor) -> Tensor:
        """sqrt(n(sigma)), the root mean square of the score per radian."""
        return score_root_mean_square(sigma, self._widest)

    @property
    def _widest(self) -> float:
        return TURN * self.sigma_max

    def _sigmas(self, step: Step, like: Tensor) -> tuple[Tensor, Tensor]:
        """sigma at s and at r, [B] in radians; 0 at r = 0."""
        return self._angle(step.s, like), self._angle(step.r, like).masked_fill(step.r <= 0, 0.0)

    def _angle(self, s: Tensor, like: Tensor) -> Tensor:
        """sigma in radians at times s, in the dtype of ``like``."""
        return TURN * self.sigma(s.to(like.dtype))


_DEFAULTS = WrappedVE()


@process("com_free_ve.v1")
def com_free_ve(
    *,
    sigma_min: float = _DEFAULTS.sigma_min,
    sigma_max: float = _DEFAULTS.sigma_max,
    step_lr: float = _DEFAULTS.step_lr,
) -> WrappedVE:
    """``WrappedVE`` whose noise leaves the periodic centre of mass in place (Lin et al., 2024: EquiCSP).

    With the angles u_i = sigma eps_i of the atoms of a crystal, per axis,

        d_i = wrap(u_i - c),    c = arg sum_j exp(i u_j),    f_s = f_0 + d / (2 pi) mod 1.

    c is the circular mean, so that d has circular mean 0. u, u less its mean (``zero_net_translation``) and d are the
    same noise up to a translation, which the network cannot see: only the targets of the three differ. Here it is a
    function of what the network can see, the score of the wrapped normal at d, less its mean over the atoms:

        target_i = -(g(d_i) - mean_j g(d_j)) / sqrt(n(sigma)),    g = d/dmu log WN.

    That is the score of d itself, grad log q with q(d) = integral over c of prod_i WN(d_i + c), where d determines c:
    at small sigma, where both are -d / sigma^2, and for many atoms. Where sigma is so large that c is a guess, the
    target is too large: at sigma = 0.13 it is off by 3 % (rms) for eight atoms and by 23 % for two, at 0.2 by a quarter
    for eight, and at 0.5, where the noise is all but uniform, grad log q is all but 0. In the paper, the law of d is
    a von Mises law estimated by Monte Carlo; here it is the wrapped normal of the noise, and nothing is fitted. The
    noise of the reverse moves and the predictions of the network are made mean-free.

    Args:
        sigma_min, sigma_max, step_lr: see ``WrappedVE``.
    """
    return WrappedVE(
        sigma_min=sigma_min, sigma_max=sigma_max, step_lr=step_lr, zero_net_translation=True, com_free=True
    )
