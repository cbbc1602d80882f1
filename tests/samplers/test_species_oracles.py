"""Samplers with learnt atom types, driven by networks that know the answer: they must return the types exactly."""

from collections.abc import Mapping

import attrs
import pytest
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.interfaces import DiffusionProcess, Sampler
from kldm.processes import Absorbing, LogTan, TrivializedTorus, VPEuclidean, analog_bits, one_hot
from kldm.samplers import EulerMaruyama, PredictorCorrector, ProbabilityFlow
from tests.oracles import Oracle, random_crystals, translation_free_rms

SPECIES: Mapping[str, VPEuclidean | Absorbing] = {
    "one_hot_x0": one_hot(),
    "one_hot_eps": one_hot(parameterization="eps"),
    "analog_bits": analog_bits(),
    "absorbing": Absorbing(),
    "absorbing_remask": Absorbing(remask=True),
}

Sampling = EulerMaruyama | PredictorCorrector | ProbabilityFlow

SAMPLERS: Mapping[str, Sampling] = {
    "em": EulerMaruyama(steps=300),
    "em_exponential": EulerMaruyama(steps=150, euclidean="exponential"),
    "pc": PredictorCorrector(steps=150),
    "pc_paper": PredictorCorrector(steps=300, order="predict_then_correct"),
    "flow": ProbabilityFlow(steps=100),
}
FIRST_ORDER = ("em", "pc_paper")  # in the cell, which takes Euler-Maruyama steps: 1 % at 1,000 of them


def runs(*names: str) -> list[tuple[str, str]]:
    """(species process, sampler) of every pair that goes together; re-masking is a correction, of "pc" alone."""
    return [
        (species, name)
        for species, process in SPECIES.items()
        for name in names
        if not (name == "flow" and "flow" not in process.moves) and not (species == "absorbing_remask" and name != "pc")
    ]


def joint(species: DiffusionProcess) -> dict[str, DiffusionProcess]:
    """KLDM for de-novo generation, its lattice not standardised."""
    cell = VPEuclidean(codec=LogTan(standardise=False))
    return {"coordinates": TrivializedTorus(), "lattice": cell, "species": species}


def sample(sampler: Sampler, oracle: Oracle, seed: int) -> Crystals:
    """Samples of the oracle's layout; a sampler is shown no true value."""
    truth = oracle.candidates[0]
    blank = Crystals(
        torch.zeros_like(truth.fractional),
        torch.ones_like(truth.lattice),
        torch.ones_like(truth.species),
        truth.layout,
    )
    sampler.check(oracle.processes)
    return sampler.sample(oracle, blank, torch.Generator().manual_seed(seed))


def assert_returned(sampler: Sampling, species: str, tolerance: float) -> None:
    truth = random_crystals((8, 1, 5, 8, 8, 3), seed=1)
    result = sample(sampler, Oracle(joint(SPECIES[species]), (truth,)), seed=2)
    assert torch.equal(result.species, truth.species)
    torch.testing.assert_close(result.lattice, truth.lattice, rtol=tolerance, atol=0.0)
    assert translation_free_rms(result.fractional, truth.fractional, truth.layout).max() < 0.01


@pytest.mark.parametrize(("species", "name"), runs(*SAMPLERS))
def test_every_sampler_returns_the_types_and_the_crystal(species: str, name: str) -> None:
    assert_returned(SAMPLERS[name], species, 0.03 if name in FIRST_ORDER else 0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("species", "name"), runs(*FIRST_ORDER))
def test_a_thousand_steps_of_first_order_return_the_cell_to_a_hundredth(species: str, name: str) -> None:
    assert_returned(attrs.evolve(SAMPLERS[name], steps=1000), species, 0.01)


def copies(crystal: Crystals, count: int) -> Crystals:
    layout = Layout.of(crystal.layout.sizes * count)
    return Crystals(
        crystal.fractional.repeat(count, 1), crystal.lattice.repeat(count, 1), crystal.species.repeat(count), layout
    )


def whole(result: Crystals, truth: Crystals) -> Tensor:
    """bool [B]: all types of the crystal are those of the truth."""
    return truth.layout.mean((result.species == truth.species).double()) == 1


def assert_whole_and_equal(sampler: Sampling, species: str) -> None:
    """All types and positions of a sample are those of the same one of two crystals, each in half of the samples.

    Absorbing steps draw the atoms that they unmask independently of each other, so that the first two of a crystal
    may contradict each other where they come in the same step: of 50 steps, in at most 1.5 % of the samples.
    """
    count = 600
    truths = tuple(copies(random_crystals((3,), seed=seed), count) for seed in (10, 11))
    assert not (truths[0].species == truths[1].species).any()
    result = sample(sampler, Oracle(joint(SPECIES[species]), truths), seed=5)
    types = [whole(result, truth) for truth in truths]
    assert float((types[0] | types[1]).double().mean()) >= (0.985 if "absorbing" in species else 1)
    assert abs(float(types[0].double().mean()) - 0.5) < 0.05
    places = [translation_free_rms(result.fractional, truth.fractional, truth.layout) < 0.05 for truth in truths]
    same = (types[0] & places[0]) | (types[1] & places[1])
    assert float(same.double().mean()) > 0.96


@pytest.mark.parametrize(("species", "name"), runs("em_exponential", "pc", "flow"))
def test_two_crystals_come_whole_and_in_equal_parts(species: str, name: str) -> None:
    steps = {"em_exponential": 75, "pc": 50, "flow": 30}
    assert_whole_and_equal(attrs.evolve(SAMPLERS[name], steps=steps[name]), species)


@pytest.mark.slow
@pytest.mark.parametrize(("species", "name"), runs(*FIRST_ORDER))
def test_two_crystals_come_whole_and_in_equal_parts_at_first_order(species: str, name: str) -> None:
    assert_whole_and_equal(attrs.evolve(SAMPLERS[name], steps=100), species)


@pytest.mark.parametrize("species", SPECIES)
@pytest.mark.parametrize("elements", [(3, 8, 25), (26,)])
def test_no_sample_leaves_the_allowed_elements(species: str, elements: tuple[int, ...]) -> None:
    """However sure the network is of others."""
    truth = attrs.evolve(random_crystals((4, 6), seed=3), species=torch.tensor([79, 47, 30, 26, 8, 3, 92, 17, 11, 1]))
    process = SPECIES[species]
    oracle = Oracle(joint(process.restricted(elements)), (truth,))
    for sampler in SAMPLERS.values():
        if not isinstance(sampler, ProbabilityFlow) or "flow" in process.moves:
            result = sample(attrs.evolve(sampler, steps=20), oracle, seed=4)
            assert set(result.species.tolist()) <= set(elements)


@pytest.mark.parametrize("species", SPECIES)
def test_the_true_types_survive_a_restriction_that_allows_them(species: str) -> None:
    truth = attrs.evolve(random_crystals((4, 2), seed=6), species=torch.tensor([3, 8, 8, 25, 3, 25]))
    process = SPECIES[species].restricted((3, 8, 25))
    samplers: tuple[Sampler, ...] = (EulerMaruyama(steps=200), PredictorCorrector(steps=50))
    for seed, sampler in enumerate(samplers):
        assert torch.equal(sample(sampler, Oracle(joint(process), (truth,)), seed).species, truth.species)
