"""'Networks' that know the answer: models for samplers which return the exact prediction for known true crystals."""

from collections.abc import Mapping
from math import pi

import attrs
import torch
from torch import Tensor

from kldm import testing
from kldm.crystals import Crystals, Layout
from kldm.interfaces import DiffusionProcess, Latent, Prediction
from kldm.processes import Absorbing, TrivializedTorus, VPEuclidean, WrappedVE
from kldm.processes.kinetic import Kernel
from kldm.torus import score_root_mean_square, wrap, wrapped_normal_score

TURN = 2 * pi
IMPOSSIBLE = -1e4  # logit of a type, or log density of an atom, that cannot be


def random_crystals(sizes: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Crystals:
    """Random crystals with a column ``energy``, of which every third value is not known."""
    return testing.random_crystals(sizes, seed, dtype, ("energy",))


def aligned_residual(state: Tensor, truth: Tensor, layout: Layout) -> Tensor:
    """state - truth [N, C] in radians, each crystal's axes shifted by the circular mean over its atoms, wrapped."""
    residual = state - truth
    centre = torch.atan2(layout.mean(residual.sin()), layout.mean(residual.cos()))
    return wrap(residual - layout.per_atom(centre))


def translation_free_rms(fractional: Tensor, truth: Tensor, layout: Layout) -> Tensor:
    """Root mean square deviation [B], fractional units, after removing each crystal's translation."""
    residual = aligned_residual(fractional * TURN, truth * TURN, layout) / TURN
    return layout.mean(layout.centred(residual).square().sum(-1)).sqrt()


@attrs.frozen(eq=False)
class _Guess:
    """What one crystal, taken for the truth, says: log p(state) [B] up to a constant, and exact values (of tokens, the
    probability of each)."""

    log_density: Tensor
    value: Tensor


@attrs.frozen(eq=False)
class Oracle:
    """A model that knows the true crystals, one or several for each crystal of the batch.

    One candidate: the clean positions are first aligned to the state, per axis, by the circular mean over the atoms of
    r - mu_r (the prior over positions is uniform). Several: the posterior mixture, whose translation is integrated over
    by quadrature, so that the prediction is exact for a uniformly translated truth. All modalities share the weights of
    the mixture: their log densities add up.

    Attributes:
        processes: by modality, as ``JointModel`` has them.
        candidates: the true crystals, all with the layout of the samples.
        weights: how probable each of them is; equally by default.
        width: standard deviation of the clean positions of every atom about a candidate's, in radians, wrapped normal
            and independent, and of the clean numbers of a VP process about its numbers. The velocity says nothing of
            them, so that sigma_r^2 + width^2 stands for sigma_r^2.
    """

    processes: Mapping[str, DiffusionProcess]
    candidates: tuple[Crystals, ...]
    weights: tuple[float, ...] | None = None
    width: float = 0.0

    def predict(self, latents: Mapping[str, Latent], s: Tensor, layout: Layout) -> Mapping[str, Prediction]:
        guesses = {
            name: [self._guess(process, latents[name], s, truth, layout) for truth in self.candidates]
            for name, process in self.processes.items()
            if isinstance(process, TrivializedTorus | WrappedVE | VPEuclidean | Absorbing)
        }
        density = sum(
            (torch.stack([guess.log_density for guess in each], -1) for each in guesses.values()),
            s.new_zeros(len(layout), len(self.candidates)),
        )
        if self.weights is not None:
            density = density + torch.tensor(self.weights, dtype=s.dtype).log()
        weight = torch.softmax(density, -1)
        answers: dict[str, Prediction] = {name: {} for name in self.processes}
        for name, each in guesses.items():
            process = self.processes[name]
            channel = process.predicts[0]
            values = torch.stack([guess.value for guess in each], -1)
            rows = weight if channel.per == "crystal" else layout.per_atom(weight)
            value = (values * rows.unsqueeze(1)).sum(-1)
            answers[name] = {channel.name: _output(process, value, latents[name], s, layout)}
        return answers

    def _guess(
        self,
        process: TrivializedTorus | WrappedVE | VPEuclidean | Absorbing,
        latent: Latent,
        s: Tensor,
        truth: Crystals,
        layout: Layout,
    ) -> _Guess:
        if isinstance(process, VPEuclidean):
            channel = process.codec.channel
            clean = process.codec.encode(truth)
            time = _column(process, s, layout)
            alpha = process.schedule.alpha(time)
            error = latent[channel.name] - alpha * clean
            variance = process.schedule.sigma(time).clamp(min=1e-5).square() + (alpha * self.width).square()
            density = -(error.square() / variance).sum(-1) / 2
            mean = clean + alpha * self.width**2 / variance * error
            return _Guess(density if channel.per == "crystal" else layout.sum(density), mean)
        if isinstance(process, Absorbing):
            seen, types = latent["species"], process.predicts[0].width
            possible = (seen == types) | (seen == truth.species - 1)
            density = torch.where(possible, 0.0, IMPOSSIBLE).to(s.dtype)
            return _Guess(layout.sum(density), torch.nn.functional.one_hot(truth.species - 1, types).to(s.dtype))
        state, variance = latent["fractional"] * TURN, _position_variance(process, s, layout) + self.width**2
        if isinstance(process, TrivializedTorus):
            state = state - _kernel(process, s, layout).gain * latent["velocity"] * TURN
        if len(self.candidates) == 1 and not self.width:
            g = wrapped_normal_score(aligned_residual(state, truth.fractional * TURN, layout), variance)
            return _Guess(torch.zeros_like(s), layout.centred(g))
        images = 1 if isinstance(process, TrivializedTorus) and process.horizon <= 2 else 3
        return _translated(state, truth.fractional * TURN, variance, layout, images)


def _translated(
    state: Tensor, truth: Tensor, variance: Tensor, layout: Layout, images: int, points: int = 32
) -> _Guess:
    """log density and g for a truth translated uniformly along each axis, by the trapezoidal rule over the translation.

    The nodes span the circle where the posterior of the translation is wide, else 8 of its standard deviations on
    either side of the circular mean. One image on either side is exact to 1e-12 for the default horizon of
    ``TrivializedTorus``, three to 1e-10 for a standard deviation of half a turn.
    """
    spread = (layout.mean(variance) / layout.num_atoms.unsqueeze(-1)).sqrt()
    spacing = (0.5 * spread).clamp(max=TURN / points)
    nodes = layout.per_atom(spacing) * (torch.arange(points, dtype=state.dtype, device=state.device) - (points - 1) / 2)
    x = wrap(aligned_residual(state, truth, layout).unsqueeze(-1) - nodes.unsqueeze(1))
    wide = variance.unsqueeze(-1)
    others, moment = torch.zeros_like(x), torch.zeros_like(x)  # relative to the image k = 0
    for k in range(1, images + 1):
        right, left = torch.exp(-TURN * k * (x + pi * k) / wide), torch.exp(TURN * k * (x - pi * k) / wide)
        others, moment = others + right + left, moment + k * (right - left)
    joint = layout.sum(torch.log1p(others) - x.square() / (2 * wide))
    posterior = layout.per_atom(torch.softmax(joint, -1))
    mean_image = x + TURN * moment / (1 + others)
    g = (posterior * mean_image).sum(-1) / variance
    return _Guess((torch.logsumexp(joint, -1) + spacing.log()).sum(-1), layout.centred(g))


def _position_variance(process: TrivializedTorus | WrappedVE, s: Tensor, layout: Layout) -> Tensor:
    """Of the wrapped normal noise of the positions, [N, 1] in radians squared."""
    if isinstance(process, TrivializedTorus):
        return _kernel(process, s, layout).position_variance
    return (TURN * layout.per_atom(process.sigma(s)).unsqueeze(-1)).square()


def _kernel(process: TrivializedTorus, s: Tensor, layout: Layout) -> Kernel:
    return Kernel.at(process.horizon * layout.per_atom(s).unsqueeze(-1), process.variance_floor)


def _column(process: VPEuclidean, s: Tensor, layout: Layout) -> Tensor:
    return (s if process.codec.channel.per == "crystal" else layout.per_atom(s)).unsqueeze(-1)


def _output(process: DiffusionProcess, value: Tensor, latent: Latent, s: Tensor, layout: Layout) -> Tensor:
    """The network's output that stands for g, for the clean value or for the probabilities."""
    if isinstance(process, Absorbing):
        return value.log().clamp(min=IMPOSSIBLE)
    if isinstance(process, VPEuclidean):
        if process.parameterization == "x0":
            return value
        time = _column(process, s, layout)
        x = latent[process.codec.channel.name]
        return (x - process.schedule.alpha(time) * value) / process.schedule.sigma(time).clamp(min=1e-5)
    assert isinstance(process, TrivializedTorus | WrappedVE)
    if isinstance(process, WrappedVE):  # the score by the state is minus that by the mean
        return -value / score_root_mean_square(_position_variance(process, s, layout).sqrt())
    kernel = _kernel(process, s, layout)
    if process.parameterization == "simplified":
        return value / score_root_mean_square(kernel.position_variance.sqrt())
    return kernel.gain * value - latent["velocity"] * TURN / kernel.velocity_variance
