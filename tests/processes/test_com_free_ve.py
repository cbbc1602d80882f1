import attrs
import pytest
import torch
from torch import Tensor

from kldm.crystals import Layout
from kldm.errors import KldmError
from kldm.processes import WrappedVE, com_free_ve
from tests.oracles import TURN, random_crystals, translation_free_rms

SIZES = (1, 2, 3, 8, 20)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _times(value: float, sizes: tuple[int, ...] = SIZES) -> Tensor:
    return torch.full((len(sizes),), value, dtype=torch.float64)


def _circular_mean(angle: Tensor, layout: Layout) -> Tensor:
    return torch.atan2(layout.mean(angle.sin()), layout.mean(angle.cos()))


def _integrated_score(angle: Tensor, sigma: float) -> Tensor:
    """Gradient of log q, q = integral over c of prod_i WN(angle_i + c), for one crystal [K, 3], per radian."""
    c = torch.arange(1000, dtype=torch.float64) * (TURN / 1000)
    angle = angle.clone().requires_grad_()
    k = torch.arange(-5, 6, dtype=torch.float64)
    image = angle[:, :, None, None] + c[:, None] + TURN * k  # [K, 3, 1000, 11]
    log_density = torch.logsumexp(-image.square() / (2 * sigma**2), -1).sum(0)
    gradient: Tensor = torch.autograd.grad(torch.logsumexp(log_density, -1).sum(), angle)[0]
    return gradient


@pytest.mark.parametrize("s", [0.1, 0.7, 0.9, 1.0])
def test_noise_does_not_translate_and_the_target_is_mean_free(s: float) -> None:
    crystals = random_crystals(SIZES, 0)
    noised = com_free_ve().noise(crystals, _times(s), _seeded(1))
    angle = TURN * (noised.latent["fractional"] - crystals.fractional)
    assert _circular_mean(angle, crystals.layout).abs().max() < 1e-10
    target = noised.target["displacement"]
    assert crystals.layout.mean(target).abs().max() < 1e-12
    assert target[1:].abs().max() > 0.1
    assert (target[0] == 0).all()  # the atom of the first crystal, which has nowhere to go
    assert angle[0].abs().max() < 1e-12


def test_a_translation_of_the_clean_crystal_translates_the_noisy_one_and_changes_no_target() -> None:
    crystals = random_crystals(SIZES, 2)
    shift = crystals.layout.per_atom(torch.rand(5, 3, generator=_seeded(3), dtype=torch.float64))
    moved = attrs.evolve(crystals, fractional=(crystals.fractional + shift) % 1)
    for s in (0.3, 0.8, 1.0):
        one, other = (com_free_ve().noise(c, _times(s), _seeded(4)) for c in (crystals, moved))
        torch.testing.assert_close(one.target, other.target, rtol=1e-9, atol=1e-9)
        away = other.latent["fractional"] - one.latent["fractional"] - shift
        assert (away - away.round()).abs().max() < 1e-12


@pytest.mark.parametrize("s", [0.3, 0.8, 1.0])
def test_noise_is_that_of_diffcsp_up_to_a_translation(s: float) -> None:
    crystals = random_crystals(SIZES, 5)
    free, wild = (process.noise(crystals, _times(s), _seeded(6)).latent for process in (com_free_ve(), WrappedVE()))
    assert translation_free_rms(free["fractional"], wild["fractional"], crystals.layout).max() < 1e-10
    assert (free["fractional"] - wild["fractional"]).abs().max() > 1e-3


@pytest.mark.parametrize(("s", "error"), [(0.3, 1e-6), (0.6, 1e-3), (0.7, 0.05)])
def test_target_is_the_score_of_the_law_over_translations(s: float, error: float) -> None:
    """Exact where the noise is narrow against the cell; 3 % off at sigma = 0.126 for eight atoms."""
    sizes = (8,) * 12
    crystals, process = random_crystals(sizes, 7), com_free_ve()
    noised = process.noise(crystals, _times(s, sizes), _seeded(8))
    sigma = TURN * float(process.sigma(torch.tensor(s, dtype=torch.float64)))
    angle = TURN * (noised.latent["fractional"] - crystals.fractional)
    exact = torch.cat([_integrated_score(angles, sigma) for angles in torch.split(angle, 8)]) * sigma  # n = 1 / sigma^2
    difference = noised.target["displacement"] - exact
    assert (difference.square().mean() / exact.square().mean()).sqrt() < error


def test_its_noise_is_free_of_translation_by_definition() -> None:
    assert com_free_ve().zero_net_translation
    with pytest.raises(TypeError, match="zero_net_translation"):
        com_free_ve(zero_net_translation=False)  # type: ignore[call-arg]
    with pytest.raises(KldmError, match="zero_net_translation: must be true where com_free is"):
        WrappedVE(com_free=True)
