"""The sampler of DiffCSP: its stages, its ancestral step, and a model with a real network."""

from functools import partial

import pytest
import torch

from kldm.errors import KldmError
from kldm.interfaces import DiffusionProcess, Step
from kldm.model import JointModel
from kldm.networks import CSPVNet
from kldm.processes import Absorbing, Cosine, Given, LogTan, VPEuclidean, WrappedVE, com_free_ve, one_hot
from kldm.samplers import AnnealedLangevin
from tests.oracles import random_crystals
from tests.small import NETWORK

CELL = VPEuclidean(codec=LogTan(standardise=False), schedule=Cosine(), parameterization="eps")


def model(coordinates: WrappedVE) -> JointModel:
    torch.manual_seed(0)
    return JointModel(
        coordinates=coordinates, lattice=CELL, species=Given(), network=partial(CSPVNet, **NETWORK)
    ).double()


def test_coordinates_are_corrected_before_every_modality_takes_its_ancestral_step() -> None:
    processes: dict[str, DiffusionProcess] = {"coordinates": WrappedVE(), "lattice": CELL, "species": Absorbing()}
    stages = AnnealedLangevin(corrections=2).stages(processes)
    assert [(stage.at, dict(stage.moves)) for stage in stages] == [
        ("start", {"coordinates": "correct"}),
        ("start", {"coordinates": "correct"}),
        ("start", {"coordinates": "denoise", "lattice": "exponential", "species": "denoise"}),
    ]
    both = AnnealedLangevin(corrected=("coordinates", "lattice")).stages(processes)
    assert dict(both[0].moves) == {"coordinates": "correct", "lattice": "correct"}
    de_novo = {**processes, "species": one_hot(parameterization="eps")}
    assert AnnealedLangevin().stages(de_novo)[-1].moves["species"] == "exponential"


@pytest.mark.parametrize("level", [1, 2, 40, 500, 998, 1000])
def test_the_ancestral_step_of_the_lattice_is_that_of_ddpm(level: int) -> None:
    """Ho et al. (2020), Algorithm 2, with a posterior variance (1 - A_{t-1}) / (1 - A_t) beta_t, A = prod 1 - beta."""
    crystals = random_crystals((1,) * 6, 0)
    bar = CELL.schedule.alpha(torch.arange(1001, dtype=torch.float64) / 1000).square()
    beta = 1 - bar[level] / bar[level - 1]
    x, eps = torch.randn(2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    s, r = (torch.full((6,), at / 1000, dtype=torch.float64) for at in (level, level - 1))
    step = Step(s, r, s, crystals.layout, torch.Generator().manual_seed(2))
    name = CELL.codec.channel.name
    found = CELL.exponential({name: x}, {name: eps}, step)[name]
    z = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mean = (x - beta / (1 - bar[level]).sqrt() * eps) / (1 - beta).sqrt()
    expected = mean + ((1 - bar[level - 1]) / (1 - bar[level]) * beta).sqrt() * z
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_what_cannot_be_corrected_is_refused() -> None:
    with pytest.raises(KldmError, match="model has coordinates, lattice"):
        AnnealedLangevin(corrected=("charge",)).check({"coordinates": WrappedVE(), "lattice": CELL})
    with pytest.raises(KldmError, match="coordinates"):
        AnnealedLangevin().check({"lattice": CELL})
    AnnealedLangevin().check({"coordinates": WrappedVE()})


@pytest.mark.parametrize("options", [{"steps": 0}, {"s_min": 1.0}, {"corrections": 0}])
def test_impossible_options(options: dict[str, float]) -> None:
    with pytest.raises(KldmError, match=next(iter(options))):
        AnnealedLangevin(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("coordinates", [WrappedVE(), com_free_ve()], ids=["diffcsp", "equicsp"])
def test_a_model_learns_from_a_step_and_samples(coordinates: WrappedVE) -> None:
    built, truth = model(coordinates), random_crystals((1, 3, 5), 0)
    s = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    optimizer = torch.optim.SGD(built.parameters(), lr=0.05)

    def loss() -> torch.Tensor:
        return built.total(built.losses(truth, s, torch.Generator().manual_seed(1)))

    before = loss()
    before.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert loss() < before
    sampler = AnnealedLangevin(steps=3)
    sampler.check(built.processes)
    samples = sampler.sample(built, truth, torch.Generator().manual_seed(2))
    assert ((samples.fractional >= 0) & (samples.fractional < 1)).all()
    assert samples.lattice.isfinite().all()
    assert not torch.equal(samples.fractional, truth.fractional)
