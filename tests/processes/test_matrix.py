"""The lattice as a matrix: the codec, and the process and network that take it."""

from functools import partial
from math import pi

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core.lattice import Lattice
from torch import Tensor

from kldm.data.convert import to_structure_or_reason
from kldm.interfaces import Step
from kldm.model import JointModel
from kldm.networks import CSPNet
from kldm.processes import Cosine, Given, Matrix, TrivializedTorus, VPEuclidean
from kldm.samplers import PredictorCorrector
from tests.oracles import random_crystals

CODEC = Matrix()


def decoded(values: Tensor) -> Tensor:
    """Lengths and angles [B, 6] of matrices [B, 9]."""
    return CODEC.decode(values, random_crystals((1,) * len(values), 0, values.dtype)).lattice


def reason(values: list[float]) -> str:
    """Why the crystal of this matrix is none."""
    crystals = random_crystals((1,), 0, torch.float32)
    found = CODEC.decode(torch.tensor([values]), crystals)
    return to_structure_or_reason(found)[0][1]


def test_rows_are_pymatgen_s_lattice_vectors() -> None:
    crystals = random_crystals((1, 3, 5), 1)
    values = CODEC.encode(crystals)
    assert values.shape == (3, CODEC.channel.width)
    for row, lattice in zip(values, crystals.lattice, strict=True):
        expected = Lattice.from_parameters(*lattice[:3].tolist(), *lattice[3:].rad2deg().tolist()).matrix
        np.testing.assert_allclose(row.view(3, 3).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_decode_inverts_encode(dtype: torch.dtype, bound: float) -> None:
    crystals = random_crystals((2,) * 50, 1, dtype)
    blank = attrs.evolve(crystals, lattice=torch.full_like(crystals.lattice, torch.nan))
    found = CODEC.decode(CODEC.encode(crystals), blank)
    torch.testing.assert_close(found.lattice, crystals.lattice, rtol=bound, atol=bound)
    assert torch.equal(found.fractional, crystals.fractional)
    assert torch.equal(found.species, crystals.species)


@settings(deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=9, max_size=9))
def test_any_numbers_have_the_lengths_and_angles_of_their_rows(numbers: list[float]) -> None:
    values = torch.tensor([numbers], dtype=torch.float64)
    rows = values.view(3, 3).numpy()
    lengths = np.linalg.norm(rows, axis=1)
    found = decoded(values)[0].numpy()
    np.testing.assert_allclose(found[:3], lengths, rtol=1e-12, atol=1e-150)  # where the squares vanish
    assert ((found[3:] >= 0) & (found[3:] <= pi)).all()
    for angle, (i, j) in zip(found[3:], ((1, 2), (0, 2), (0, 1)), strict=True):
        if min(lengths[i], lengths[j]) > 1e-3:
            cosine = rows[i] @ rows[j] / (lengths[i] * lengths[j])
            assert np.cos(angle) == pytest.approx(cosine, abs=1e-12)


def test_turned_and_mirrored_matrices_are_the_same_cell() -> None:
    crystals, rng = random_crystals((1,) * 20, 2), torch.Generator().manual_seed(0)
    by = torch.linalg.qr(torch.randn(20, 3, 3, generator=rng, dtype=torch.float64)).Q
    by[10:] *= -1
    assert {round(float(sign)) for sign in torch.linalg.det(by)} == {-1, 1}
    values = (CODEC.encode(crystals).reshape(-1, 3, 3) @ by).flatten(1)
    torch.testing.assert_close(decoded(values), crystals.lattice, rtol=1e-12, atol=1e-12)


def test_huge_and_tiny_numbers_neither_overflow_nor_vanish() -> None:
    unit = torch.tensor([[1.0, 0, 0, 0.6, 0.8, 0, 0, 0, 1]])
    expected = torch.tensor([pi / 2, pi / 2, torch.tensor(0.6).acos().item()])
    for scale in (1e30, 1e-30):
        found = decoded(unit * scale)[0]
        torch.testing.assert_close(found[:3], torch.full((3,), scale), rtol=1e-5, atol=0.0)
        torch.testing.assert_close(found[3:], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.0, 0, 0, 0, 4, 0, 0, 0, 4], "cell length not positive"),
        ([4.0, 0, 0, 8, 0, 0, 0, 0, 4], "a cell angle lies outside"),
        ([4.0, 0, 0, -4, 0, 0, 0, 0, 4], "a cell angle lies outside"),
        ([4.0, 0, 0, 0, 4, 0, 3, 3, 0], "the cell is flat"),
        ([float("nan"), 0, 0, 0, 4, 0, 0, 0, 4], "not finite"),
        ([float("inf"), 0, 0, 0, 4, 0, 0, 0, 4], "not finite"),
        ([3e38, 3e38, 3e38, 0, 4, 0, 0, 0, 4], "not finite"),
    ],
    ids=["no length", "parallel", "opposite", "coplanar", "nan", "infinite", "overflow"],
)
def test_what_is_no_cell_fails_later_with_a_reason(values: list[float], words: str) -> None:
    assert words in reason(values)


def test_a_good_matrix_has_no_fault() -> None:
    assert reason([4.0, 0, 0, 1, 4, 0, 0, 1, -4]) == ""


def test_the_diffusion_brings_the_cell_back() -> None:
    """DDIM steps with the exact prediction are exact."""
    process = VPEuclidean(codec=CODEC, schedule=Cosine(), parameterization="eps")
    crystals = random_crystals((3,) * 8, 1)
    s = torch.full((8,), 0.7, dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    noised = process.noise(crystals, s, rng)
    latent = process.flow(noised.latent, noised.target, Step(s, s * 0, s, crystals.layout, rng))
    torch.testing.assert_close(process.decode(latent, crystals).lattice, crystals.lattice, rtol=1e-9, atol=1e-9)


def test_a_model_trains_and_samples_with_it() -> None:
    torch.manual_seed(0)
    model = JointModel(
        coordinates=TrivializedTorus(),
        lattice=VPEuclidean(codec=CODEC, schedule=Cosine(), parameterization="eps"),
        species=Given(),
        network=partial(CSPNet, hidden=8, layers=1, frequencies=4, time_features=8),
    )
    crystals = random_crystals((3, 1, 2), 0, torch.float32)
    losses = model.losses(crystals, torch.tensor([0.2, 0.5, 0.9]), torch.Generator().manual_seed(0))
    model.total(losses).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    with torch.no_grad():
        samples = PredictorCorrector(steps=5).sample(model, crystals, torch.Generator().manual_seed(0))
    assert torch.isfinite(samples.lattice).all()
    assert torch.equal(samples.species, crystals.species)
