"""Variance-preserving noise schedules: alpha, sigma and beta with alpha^2 + sigma^2 = 1, safe in float32 near s = 0."""

from math import cos, pi

import attrs
import torch
from torch import Tensor

from kldm.errors import KldmError
from kldm.registry import schedule
from kldm.validators import within

_SPAN = 0.999  # share of the cosine's quarter period that is used


@schedule("linear.v1")
@attrs.frozen(kw_only=True)
class Linear:
    """beta(s) = beta_min + (beta_max - beta_min) s (Song et al., 2021).

    With B(s) the integral of beta: alpha = exp(-B / 2), sigma^2 = -expm1(-B).

    Args:
        beta_min: rate at s = 0, > 0.
        beta_max: rate at s = 1, at least ``beta_min``.
    """

    beta_min: float = attrs.field(default=0.1, validator=within(0, 1000, ends="high"))
    beta_max: float = attrs.field(default=20.0, validator=within(0, 1000, ends="high"))

    def __attrs_post_init__(self) -> None:
        if self.beta_max < self.beta_min:
            raise KldmError(f"must be at least beta_min = {self.beta_min}, got {self.beta_max}", place="beta_max")

    def alpha(self, s: Tensor) -> Tensor:
        return (self._exponent(s) / 2).exp()

    def sigma(self, s: Tensor) -> Tensor:
        return self._exponent(s).expm1().neg().sqrt()

    def beta(self, s: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * s

    def _exponent(self, s: Tensor) -> Tensor:
        """-B(s)."""
        return -self.beta_min * s - (self.beta_max - self.beta_min) / 2 * s.square()


@schedule("cosine.v1")
@attrs.frozen(kw_only=True)
class Cosine:
    """alpha(s) = cos(u) / cos(u_0), u = (0.999 s + offset) / (1 + offset) pi / 2 (Nichol and Dhariwal, 2021; DiffCSP).

    The last thousandth of the cosine is left out, so that alpha stays above 0 and beta = 2 u' tan(u) finite at s = 1;
    DiffCSP clips its last of 1,000 discrete betas to 0.9999 for the same reason. sigma^2 is
    sin(u - u_0) sin(u + u_0) / cos(u_0)^2, which does not cancel near s = 0.

    Args:
        offset: keeps the noise of the first steps from vanishing, > 0.
    """

    offset: float = attrs.field(default=0.008, validator=within(0, 1, ends="neither"))

    def alpha(self, s: Tensor) -> Tensor:
        return torch.cos(self._rate * s + self._start) / cos(self._start)

    def sigma(self, s: Tensor) -> Tensor:
        angle = self._rate * s
        return (torch.sin(angle) * torch.sin(angle + 2 * self._start)).sqrt() / cos(self._start)

    def beta(self, s: Tensor) -> Tensor:
        return 2 * self._rate * torch.tan(self._rate * s + self._start)

    @property
    def _rate(self) -> float:
        return _SPAN / (1 + self.offset) * pi / 2

    @property
    def _start(self) -> float:
        return self.offset / (1 + self.offset) * pi / 2
