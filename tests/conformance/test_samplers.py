"""What every registered sampler must do with any model whose processes have the moves that it makes."""

from typing import Any

import pytest
import torch
from torch import nn

import kldm.samplers  # noqa: F401  (fills the shelf)
from kldm.crystals import Crystals
from kldm.interfaces import Sampler
from kldm.model import JointModel
from kldm.registry import samplers
from tests.oracles import random_crystals
from tests.small import small_model

OURS = [name for name in samplers.names() if samplers.get(name).__module__.startswith("kldm.")]
GIVEN = random_crystals((4, 1, 2, 7, 1), seed=0, dtype=torch.float32)


def build(name: str, **options: Any) -> Sampler:
    made: Sampler = samplers.get(name)(**options)
    return made


@pytest.fixture(scope="module")
def model() -> JointModel:
    """Random weights, the last layers included, so that no prediction is zero."""
    built = small_model(hidden=16)
    torch.manual_seed(0)
    for parameter in built.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
    return built


def sampled(name: str, model: JointModel, seed: int = 0, given: Crystals = GIVEN) -> Crystals:
    return build(name, steps=3).sample(model, given, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", OURS)
class TestSampler:
    def test_has_defaults_and_knows_its_steps(self, name: str, model: JointModel) -> None:
        assert build(name).steps > 0
        assert build(name, steps=7).steps == 7
        build(name).check(model.processes)

    def test_answers_every_request_with_its_own_composition(self, name: str, model: JointModel) -> None:
        made = sampled(name, model)
        assert made.layout.sizes == GIVEN.layout.sizes
        assert torch.equal(made.species, GIVEN.species)
        assert made.fractional.shape == (GIVEN.layout.total, 3)
        assert made.lattice.shape == (5, 6)

    def test_numbers_are_those_of_a_crystal(self, name: str, model: JointModel) -> None:
        made = sampled(name, model)
        assert made.fractional.isfinite().all()
        assert ((made.fractional >= 0) & (made.fractional < 1)).all()
        assert made.lattice.isfinite().all()
        assert (made.lattice > 0).all()
        assert (made.lattice[:, 3:] < torch.pi).all()

    def test_crystals_of_one_atom_alone(self, name: str, model: JointModel) -> None:
        made = sampled(name, model, given=random_crystals((1,), seed=1, dtype=torch.float32))
        assert made.fractional.isfinite().all()
        assert made.lattice.isfinite().all()

    def test_progress_adds_up_to_its_steps(self, name: str, model: JointModel) -> None:
        seen: list[int] = []
        sampler = build(name, steps=3)
        sampler.sample(model, GIVEN, torch.Generator().manual_seed(0), seen.append)
        assert sum(seen) == sampler.steps
        assert len(seen) > 1

    def test_everything_follows_from_the_generator(self, name: str, model: JointModel) -> None:
        torch.manual_seed(1)
        one = sampled(name, model)
        torch.manual_seed(2)
        again, other = sampled(name, model), sampled(name, model, seed=1)
        assert torch.equal(one.fractional, again.fractional)
        assert torch.equal(one.lattice, again.lattice)
        assert not torch.equal(one.fractional, other.fractional)
        assert not torch.equal(one.lattice, other.lattice)

    def test_leaves_model_and_request_as_they_were(self, name: str, model: JointModel) -> None:
        before = [parameter.clone() for parameter in model.parameters()]
        kept = (GIVEN.fractional.clone(), GIVEN.lattice.clone())
        made = sampled(name, model)
        assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
        assert torch.equal(GIVEN.fractional, kept[0])
        assert torch.equal(GIVEN.lattice, kept[1])
        assert not made.lattice.requires_grad

    def test_does_not_look_at_what_it_is_to_find(self, name: str, model: JointModel) -> None:
        other = random_crystals(GIVEN.layout.sizes, seed=5, dtype=torch.float32)
        disguised = Crystals(other.fractional, other.lattice, GIVEN.species, GIVEN.layout)
        assert torch.equal(sampled(name, model).lattice, sampled(name, model, given=disguised).lattice)
        assert torch.equal(sampled(name, model).fractional, sampled(name, model, given=disguised).fractional)
