"""Variance-preserving diffusion of real numbers: the lattice, and anything else that a codec makes Euclidean."""

from collections.abc import Mapping
from typing import Literal

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.interfaces import OF_SAMPLING, Latent, Move, Noised, Prediction, Schedule, Step
from kldm.processes.coded import CodedProcess
from kldm.processes.draws import normal
from kldm.processes.langevin import langevin_size
from kldm.processes.schedules import Linear
from kldm.registry import process
from kldm.validators import one_of, within

_LINEAR = Linear()
_SMALLEST_SIGMA = 1e-5  # replaces in quotients the sigma that vanishes at s = 0


@process("vp_euclidean.v1")
@attrs.frozen(kw_only=True)
class VPEuclidean(CodedProcess):
    """The VP-SDE dx = -beta x / 2 ds + sqrt(beta) dw of Song et al. (2021) on a codec's numbers (sections 2.2, 3.3).

    x_s = alpha x_0 + sigma eps. The network predicts x_0 or eps under the name of the channel that it reads, and the
    score is (alpha x_0 - x) / sigma^2 = -eps / sigma.

    Args:
        codec: which part of a crystal is diffused, and as which real numbers.
        schedule: alpha, sigma and beta.
        parameterization: what the network predicts.
        eta: noise of ``exponential``; 1 draws from the posterior (ancestral sampling), 0 is ``flow``.

    Raises:
        KldmError: an option out of range.
    """

    schedule: Schedule = _LINEAR
    parameterization: Literal["x0", "eps"] = attrs.field(default="x0", validator=one_of())
    eta: float = attrs.field(default=1.0, validator=within(0, 1), metadata=OF_SAMPLING)

    @property
    def moves(self) -> Mapping[str, Move]:
        return {
            "denoise": Move(self.denoise),
            "exponential": Move(self.exponential),
            "flow": Move(self.flow),
            # Algorithm 4: x <- rho x + c S, rho = alpha_r / alpha_s, c = (rho sigma_s - sigma_r) sigma_s. With S =
            # -eps / sigma_s this is rho (x - sigma_s eps) + sigma_r eps = alpha_r x_0 + sigma_r eps.
            "predict": Move(self.flow),
            "correct": Move(self.correct, ends="now"),
            "flow_given": Move(self.flow_given, estimate=self.estimate),
            "draw_given": Move(self.draw_given, estimate=self.estimate),
        }

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        x_0, noise = self.codec.encode(clean), self._draw(clean, rng)
        s = s.to(x_0.dtype)
        alpha, sigma = self._columns(clean.layout, self.schedule.alpha(s), self.schedule.sigma(s))
        target = x_0 if self.parameterization == "x0" else noise
        return Noised({self._name: alpha * x_0 + sigma * noise}, {self._name: target})

    def denoise(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Euler-Maruyama: x <- x + (x / 2 + score) beta h + sqrt(beta h) eps; the step that ends at 0 adds no noise.

        That noise, of standard deviation sqrt(beta_min h), would stay in the result for good: about 1 % of a length
        that is not standardised, at 1,000 steps.
        """
        x, s, r = self._state(latent, step)
        spread = self.schedule.beta(s) * (s - r)
        kick = torch.where(r > 0, spread, 0.0).sqrt()
        alpha, sigma, spread, kick = self._columns(step.layout, self.schedule.alpha(s), self._sigma(s), spread, kick)
        _, noise = self._split(x, prediction[self._name], alpha, sigma)
        return {self._name: x + (x / 2 - noise / sigma) * spread + kick * normal(x, step.rng)}

    def flow(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Probability flow, its linear part exact (DDIM): x_r = alpha_r x_0 + sigma_r eps."""
        x, s, _ = self._state(latent, step)
        alpha, sigma = self._columns(step.layout, self.schedule.alpha(s), self._sigma(s))
        return self._flowed(*self._split(x, prediction[self._name], alpha, sigma), step)

    def exponential(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Semi-linear step with noise (Song et al., 2021: DDIM, Eq. 12).

        x_r = alpha_r x_0 + sqrt(sigma_r^2 - w^2) eps + w z with
        w = eta (sigma_r / sigma_s) sqrt(1 - alpha_s^2 / alpha_r^2).
        """
        x, s, _ = self._state(latent, step)
        alpha, sigma = self._columns(step.layout, self.schedule.alpha(s), self._sigma(s))
        return self._drawn(*self._split(x, prediction[self._name], alpha, sigma), step, self.eta)

    def estimate(self, latent: Latent, prediction: Prediction, s: Tensor, layout: Layout) -> Latent:
        """x_0 as the network gives it, or (x - sigma eps) / alpha."""
        x = latent[self._name]
        s = s.to(x.dtype)
        alpha, sigma = self._columns(layout, self.schedule.alpha(s), self._sigma(s))
        return {self._name: self._split(x, prediction[self._name], alpha, sigma)[0]}

    def flow_given(self, latent: Latent, clean: Latent, step: Step) -> Latent:
        """``flow`` with this x_0 (DDIM)."""
        return self._flowed(*self._noise_given(latent, clean, step), step)

    def draw_given(self, latent: Latent, clean: Latent, step: Step) -> Latent:
        """``exponential`` with this x_0 and eta = 1 (DDPM)."""
        return self._drawn(*self._noise_given(latent, clean, step), step, 1.0)

    def correct(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Langevin move x <- x + delta S + sqrt(2 delta) eps with delta = tau / S^2.

        S^2 is the mean over the numbers of a crystal, or its expectation 1 / sigma^2. At tau = 0.25 the six numbers of
        a lattice settle at 1.7 times their variance with the first and at 1.14 with the second.
        """
        x, layout = latent[self._name], step.layout
        now = step.now.to(x.dtype)
        alpha, sigma = self._columns(layout, self.schedule.alpha(now), self._sigma(now))
        score = self._split(x, prediction[self._name], alpha, sigma)[1] / -sigma
        if step.correction.step_size == "expected":
            square = self._sigma(now).square().reciprocal()
        else:
            rows = score.square()
            square = (rows if self.codec.channel.per == "crystal" else layout.mean(rows)).mean(-1)
        delta = langevin_size(square, step.correction.tau)
        delta = self._rows(delta, layout, x)
        return {self._name: x + delta * score + (2 * delta).sqrt() * normal(x, step.rng)}

    def _noise_given(self, latent: Latent, clean: Latent, step: Step) -> tuple[Tensor, Tensor]:
        """x_0 and the eps that goes with it at s."""
        x, s, _ = self._state(latent, step)
        alpha, sigma = self._columns(step.layout, self.schedule.alpha(s), self._sigma(s))
        x_0 = clean[self._name]
        return x_0, (x - alpha * x_0) / sigma

    def _flowed(self, x_0: Tensor, noise: Tensor, step: Step) -> Latent:
        """alpha_r x_0 + sigma_r eps."""
        r = step.r.to(x_0.dtype)
        alpha_r, sigma_r = self._columns(step.layout, self.schedule.alpha(r), self.schedule.sigma(r))
        return {self._name: alpha_r * x_0 + sigma_r * noise}

    def _drawn(self, x_0: Tensor, noise: Tensor, step: Step, eta: float) -> Latent:
        """alpha_r x_0 + sqrt(sigma_r^2 - w^2) eps + w z; see ``exponential``."""
        s, r = step.s.to(x_0.dtype), step.r.to(x_0.dtype)
        before, alpha_r, variance = self._sigma(s).square(), self.schedule.alpha(r), self.schedule.sigma(r).square()
        # alpha_r^2 - alpha_s^2 = sigma_s^2 - sigma_r^2, which loses fewer digits near s = 0.
        fresh = eta**2 * variance / before * (before - variance).clamp(min=0) / alpha_r.square()
        remaining = (variance - fresh).clamp(min=0).sqrt()
        alpha_r, remaining, kick = self._columns(step.layout, alpha_r, remaining, fresh.sqrt())
        return {self._name: alpha_r * x_0 + remaining * noise + kick * normal(x_0, step.rng)}

    def _state(self, latent: Latent, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """x, and the times s and r of its crystals [B] in its dtype."""
        x = latent[self._name]
        return x, step.s.to(x.dtype), step.r.to(x.dtype)

    def _sigma(self, s: Tensor) -> Tensor:
        return self.schedule.sigma(s).clamp(min=_SMALLEST_SIGMA)

    def _split(self, x: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 and eps from the network's output, consistent with each other: x = alpha x_0 + sigma eps."""
        if self.parameterization == "x0":
            x_0 = self._clean(output)
            return x_0, (x - alpha * x_0) / sigma
        estimate = (x - sigma * output) / alpha
        x_0 = self._clean(estimate)
        # Where ``_clean`` changed nothing, the network's eps is kept to the last digit.
        return x_0, output + alpha * (estimate - x_0) / sigma
