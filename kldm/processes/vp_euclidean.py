"""Variance-preserving diffusion of real numbers: the lattice, and anything else that a codec makes Euclidean."""

from collections.abc import Mapping
from typing import Literal, Self

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, CrystalStore, Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, Codec, Correction, Fits, Json, Latent, Noised, Prediction, Schedule, Step
from kldm.processes.langevin import langevin_size
from kldm.processes.schedules import Linear
from kldm.registry import process

_LINEAR = Linear()
_SMALLEST_SIGMA = 1e-5  # divides instead of the sigma that vanishes at s = 0


@process("vp_euclidean.v1")
@attrs.frozen(kw_only=True)
class VPEuclidean:
    """The VP-SDE dx = -beta x / 2 ds + sqrt(beta) dw of Song et al. (2021) on a codec's numbers (sections 2.2, 3.3).

    x_s = alpha x_0 + sigma eps. The network predicts x_0 or eps under the name of the channel that it reads, and the
    score is (alpha x_0 - x) / sigma^2 = -eps / sigma.

    Args:
        codec: which numbers of a crystal, and how they become real ones.
        schedule: alpha, sigma and beta.
        parameterization: what the network predicts.
        eta: noise of ``exponential``; 1 draws from the posterior (ancestral sampling), 0 is ``flow``.

    Raises:
        KldmError: an option out of range.
    """

    codec: Codec
    schedule: Schedule = _LINEAR
    parameterization: Literal["x0", "eps"] = "x0"
    eta: float = 1.0

    def __attrs_post_init__(self) -> None:
        if self.parameterization not in ("x0", "eps"):
            problem = f"parameterization must be 'x0' or 'eps', not {self.parameterization!r}"
            raise KldmError(problem, place="parameterization")
        if not 0 <= self.eta <= 1:
            raise KldmError(f"eta must lie in [0, 1], not {self.eta}", place="eta")
        if self.codec.channel.kind not in ("real", "matrix"):
            raise KldmError(f"the codec's channel must be real or matrix, not {self.codec.channel.kind}", place="codec")

    @property
    def reads(self) -> tuple[Channel, ...]:
        return (self.codec.channel,)

    @property
    def predicts(self) -> tuple[Channel, ...]:
        return (self.codec.channel,)

    def prior(self, given: Crystals, rng: torch.Generator) -> Latent:
        """x ~ N(0, I)."""
        rows = len(given) if self.codec.channel.per == "crystal" else given.layout.total
        like = given.lattice
        shape = (rows, self.codec.channel.width)
        return {self._name: torch.randn(shape, generator=rng, dtype=like.dtype, device=like.device)}

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        start = self.codec.encode(clean)
        s = self._rows(s, clean.layout, start)
        noise = _normal(start, rng)
        noisy = self.schedule.alpha(s) * start + self.schedule.sigma(s) * noise
        return Noised({self._name: noisy}, {self._name: start if self.parameterization == "x0" else noise})

    def loss(self, prediction: Prediction, noised: Noised, s: Tensor, layout: Layout) -> Tensor:
        """Mean square error over all numbers."""
        return (prediction[self._name] - noised.target[self._name]).square().mean()

    def denoise(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Euler-Maruyama: x <- x + (x / 2 + score) beta h + sqrt(beta h) eps; the step that ends at 0 adds no noise.

        That noise, of standard deviation sqrt(beta_min h), would stay in the result for good: about 1 % of a length
        that is not standardised, at 1,000 steps.
        """
        x = latent[self._name]
        s, r = self._rows(step.s, step.layout, x), self._rows(step.r, step.layout, x)
        _, noise = self._split(x, prediction[self._name], s)
        spread = self.schedule.beta(s) * (s - r)
        drift = (x / 2 - noise / self._sigma(s)) * spread
        return {self._name: x + drift + torch.where(r > 0, spread, 0.0).sqrt() * _normal(x, step.rng)}

    def flow(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Probability flow, its linear part exact (DDIM): x_r = alpha_r x_0 + sigma_r eps."""
        x = latent[self._name]
        s, r = self._rows(step.s, step.layout, x), self._rows(step.r, step.layout, x)
        start, noise = self._split(x, prediction[self._name], s)
        return {self._name: self.schedule.alpha(r) * start + self.schedule.sigma(r) * noise}

    def predict(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Predictor of Algorithm 4: x <- rho x + c S, rho = alpha_r / alpha_s, c = (rho sigma_s - sigma_r) sigma_s.

        With S = -eps / sigma_s this is rho (x - sigma_s eps) + sigma_r eps = alpha_r x_0 + sigma_r eps: ``flow``.
        """
        return self.flow(latent, prediction, step)

    def exponential(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Semi-linear step with noise (Song et al., 2021: DDIM, Eq. 12).

        x_r = alpha_r x_0 + sqrt(sigma_r^2 - w^2) eps + w z with
        w = eta (sigma_r / sigma_s) sqrt(1 - alpha_s^2 / alpha_r^2).
        """
        x = latent[self._name]
        s, r = self._rows(step.s, step.layout, x), self._rows(step.r, step.layout, x)
        start, noise = self._split(x, prediction[self._name], s)
        alpha, variance, before = self.schedule.alpha(r), self.schedule.sigma(r).square(), self._sigma(s).square()
        # alpha_r^2 - alpha_s^2 = sigma_s^2 - sigma_r^2, which loses fewer digits near s = 0.
        fresh = self.eta**2 * variance / before * (before - variance).clamp(min=0) / alpha.square()
        mean = alpha * start + (variance - fresh).clamp(min=0).sqrt() * noise
        return {self._name: mean + fresh.sqrt() * _normal(x, step.rng)}

    def correct(self, latent: Latent, prediction: Prediction, step: Step, correction: Correction) -> Latent:
        """Langevin move x <- x + delta S + sqrt(2 delta) eps, delta = tau / mean(S^2) over the numbers of a crystal."""
        x, layout = latent[self._name], step.layout
        now = self._rows(step.now, layout, x)
        score = -self._split(x, prediction[self._name], now)[1] / self._sigma(now)
        square = score.square()
        per_crystal = square if self.codec.channel.per == "crystal" else layout.mean(square)
        delta = self._rows(langevin_size(per_crystal.mean(-1), correction.tau), layout, x)
        return {self._name: x + delta * score + (2 * delta).sqrt() * _normal(x, step.rng)}

    def decode(self, latent: Latent, into: Crystals) -> Crystals:
        return self.codec.decode(latent[self._name], into)

    def fitted(self, train: CrystalStore) -> Self:
        return attrs.evolve(self, codec=self.codec.fitted(train)) if isinstance(self.codec, Fits) else self

    def statistics(self) -> Mapping[str, Json]:
        found = self.codec.statistics() if isinstance(self.codec, Fits) else {}
        return {"codec": found} if found else {}

    @property
    def _name(self) -> str:
        return self.codec.channel.name

    def _rows(self, values: Tensor, layout: Layout, like: Tensor) -> Tensor:
        """Values of crystals [B] as a column that goes with the channel's rows."""
        values = values.to(like.dtype)
        return (values if self.codec.channel.per == "crystal" else layout.per_atom(values)).unsqueeze(-1)

    def _sigma(self, s: Tensor) -> Tensor:
        return self.schedule.sigma(s).clamp(min=_SMALLEST_SIGMA)

    def _split(self, x: Tensor, output: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 and eps from the network's output at time s, in keeping with each other: x = alpha x_0 + sigma eps."""
        alpha, sigma = self.schedule.alpha(s), self._sigma(s)
        if self.parameterization == "x0":
            start = self._clean(output)
            return start, (x - alpha * start) / sigma
        estimate = (x - sigma * output) / alpha
        start = self._clean(estimate)
        # What ``_clean`` left alone keeps the network's eps to the last digit.
        return start, output + alpha * (estimate - start) / sigma

    def _clean(self, start: Tensor) -> Tensor:
        """The estimate of x_0 as all moves take it: as it is. A subclass puts in what it knows of the data."""
        return start


def _normal(like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=rng, dtype=like.dtype, device=like.device)
