"""Constraints hold by construction, for every process that diffuses and for any prediction."""

import attrs
import pytest
import torch

from kldm.crystals import CrystalStore
from kldm.errors import KldmError
from kldm.interfaces import DiffusionProcess, Noised, Sampler, Step
from kldm.processes import Absorbing, LogTan, TrivializedTorus, VPEuclidean, analog_bits, one_hot
from kldm.samplers import EulerMaruyama, PredictorCorrector
from kldm.sampling.constraints import ConditionedProcess, Constraints, constrained, violations
from kldm.sampling.generation import candidates, generate, requests
from kldm.sampling.targets import KnownPart, de_novo
from tests.oracles import random_crystals
from tests.small import random_store, small_dng_model, small_model

SPECIES: list[DiffusionProcess] = [
    one_hot(parameterization="x0"),
    one_hot(parameterization="eps"),
    analog_bits(),
    Absorbing(),
]
SAMPLERS: list[Sampler] = [
    EulerMaruyama(steps=3),
    EulerMaruyama(steps=3, euclidean="exponential"),
    PredictorCorrector(steps=3),
    PredictorCorrector(steps=3, order="predict_then_correct"),
]
LATTICE = VPEuclidean(codec=LogTan(standardise=False))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["em", "exponential", "pc", "cp"])
@pytest.mark.parametrize("species", SPECIES, ids=["one-hot x0", "one-hot eps", "bits", "absorbing"])
def test_allowed_elements_are_the_only_ones(species: DiffusionProcess, sampler: Sampler) -> None:
    targets = de_novo([1, 4, 7, 2] * 5, elements=(3, 8, 25))
    wanted = requests(20, 1)
    found = generate(
        small_dng_model(species), sampler, targets.store, wanted, seed=1, max_pairs=64, constraints=targets.constraints
    )
    assert set(found.species.tolist()) <= {3, 8, 25}
    assert found.sizes == (1, 4, 7, 2) * 5


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["em", "exponential", "pc", "cp"])
@pytest.mark.parametrize("species", SPECIES, ids=["one-hot x0", "one-hot eps", "bits", "absorbing"])
def test_known_parts_come_back_to_the_last_digit(species: DiffusionProcess, sampler: Sampler) -> None:
    part = KnownPart(
        (22, 8, 8), torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.0, 0.5], [0.4, 0.4, 0.4]]), random_store((1,)).lattice[0]
    )
    targets = de_novo([5, 3, 8], part)
    found = generate(
        small_dng_model(species),
        sampler,
        targets.store,
        requests(3, 1),
        seed=1,
        max_pairs=10,
        constraints=targets.constraints,
    )
    assert part.fractional is not None
    assert part.lattice is not None
    for row in range(3):
        crystal = found.batch([row])
        assert crystal.species[:3].tolist() == [22, 8, 8]
        assert torch.equal(crystal.fractional[:3], part.fractional)
        assert torch.equal(crystal.lattice[0], part.lattice)
    assert not torch.equal(found.batch([0]).fractional[3:], found.batch([2]).fractional[3:5])


def test_what_is_not_known_is_generated_as_before() -> None:
    """A part of the crystal may be known; modalities without constraint are not changed."""
    part = KnownPart((), lattice=torch.tensor([4.0, 4, 4, 1.5, 1.5, 1.5]))
    targets = de_novo([3] * 6, part)
    found = generate(
        small_dng_model(),
        EulerMaruyama(steps=3),
        targets.store,
        requests(6, 1),
        seed=0,
        max_pairs=64,
        constraints=targets.constraints,
    )
    assert torch.equal(found.lattice, targets.store.lattice)
    assert len({tuple(row) for row in found.fractional.tolist()}) == 18
    assert targets.constraints.names() == ("cell",)


def test_a_known_part_of_species_needs_no_positions() -> None:
    targets = de_novo([6] * 4, KnownPart((3, 3)))
    found = generate(
        small_dng_model(one_hot()),
        EulerMaruyama(steps=3),
        targets.store,
        requests(4, 1),
        seed=0,
        max_pairs=999,
        constraints=targets.constraints,
    )
    assert [found.batch([row]).species[:2].tolist() for row in range(4)] == [[3, 3]] * 4
    assert targets.constraints.names() == ("species",)


def test_structure_prediction_takes_a_known_cell_and_positions() -> None:
    store = random_store((4, 2))
    constraints = Constraints(
        positions=torch.tensor([True, True, False, False, False, True]), cell=torch.tensor([False, True])
    )
    found = generate(
        small_model(), PredictorCorrector(steps=3), store, requests(2, 2), seed=0, max_pairs=20, constraints=constraints
    )
    assert torch.equal(found.species, store.species.repeat(2))
    for first in (0, 6):
        assert torch.equal(found.fractional[[first, first + 1, first + 5]], store.fractional[[0, 1, 5]])
        assert not torch.isclose(found.fractional[first + 2 : first + 5], store.fractional[2:5]).all(-1).any()
    assert torch.equal(found.lattice[[1, 3]], store.lattice[[1, 1]])
    assert not torch.isclose(found.lattice[[0, 2]], store.lattice[[0, 0]]).any()


@pytest.mark.parametrize("inner", [TrivializedTorus(), LATTICE, *SPECIES], ids=str)
def test_a_held_process_has_the_moves_of_its_own_and_no_others(inner: DiffusionProcess) -> None:
    held = ConditionedProcess(inner, random_crystals((2,), 0), torch.ones(2, dtype=torch.bool))
    assert held.moves.keys() == inner.moves.keys()
    assert (held.reads, held.predicts) == (inner.reads, inner.predicts)


@pytest.mark.parametrize(
    "inner", [TrivializedTorus(), LATTICE, one_hot(), analog_bits()], ids=lambda p: type(p).__name__
)
def test_held_rows_follow_the_forward_process_after_every_move(inner: DiffusionProcess) -> None:
    """With all rows known, a move's result is a draw of the forward process at the time where the move ends."""
    clean = random_crystals((3,) * 200, 0)
    per_crystal = inner.reads[0].per == "crystal"
    held = ConditionedProcess(inner, clean, torch.ones(200 if per_crystal else 600, dtype=torch.bool))
    rng = torch.Generator().manual_seed(0)
    s, r = torch.full((200,), 0.6, dtype=torch.float64), torch.full((200,), 0.4, dtype=torch.float64)
    latent = held.prior(clean, rng)
    prediction = {channel.name: latent[channel.name] for channel in inner.predicts}
    step = Step(s=s, r=r, now=s, layout=clean.layout, rng=rng)
    for name, move in held.moves.items():
        found, time = move(latent, prediction, step), s if name == "correct" else r
        expected: Noised = inner.noise(clean, time, rng)
        for channel, values in found.items():
            assert values.shape == expected.latent[channel].shape
            # Same law, other draws: means and spreads over hundreds of rows agree.
            assert values.mean().item() == pytest.approx(expected.latent[channel].mean().item(), abs=0.08)
            assert values.std().item() == pytest.approx(expected.latent[channel].std().item(), rel=0.1)


def test_violations_are_counted_from_the_structures() -> None:
    part = KnownPart((22, 8), torch.tensor([[0.0, 0, 0], [0.5, 0.5, 0.5]]), torch.tensor([4.0, 4, 5, 1.5, 1.6, 1.7]))
    targets = de_novo([3] * 4, part, elements=(8, 22))
    store = attrs.evolve(targets.store, species=torch.tensor([22, 8, 8] * 4))
    wanted = requests(4, 1)

    def count(changed: CrystalStore) -> dict[str, int]:
        return violations(candidates(changed, wanted), range(4), targets.store, targets.constraints)

    kept = {"elements": 0, "positions": 0, "species": 0, "cell": 0}
    assert count(store) == kept
    fractional = store.fractional.clone()
    fractional[4, 2] += 0.01  # known
    fractional[8, 2] += 0.01  # free
    fractional[0] = 1 - 1e-6  # the same place
    assert count(attrs.evolve(store, fractional=fractional)) == {**kept, "positions": 1}
    lattice = store.lattice.clone()
    lattice[2, 5] += 0.01
    assert count(attrs.evolve(store, lattice=lattice)) == {**kept, "cell": 1}
    assert count(attrs.evolve(store, species=torch.tensor([22, 8, 8, 8, 22, 8, 22, 8, 9, 22, 8, 22]))) == {
        **kept,
        "elements": 1,
        "species": 1,
    }
    assert count(attrs.evolve(store, lattice=torch.full((4, 6), torch.nan))) == kept  # nothing was built


def test_what_cannot_be_obeyed_is_refused() -> None:
    store = random_store((2,))
    with pytest.raises(KldmError, match="takes its atom types from the composition"):
        Constraints(elements=(3,)).check(small_model().processes, store)
    targets = de_novo([3], KnownPart((22,)), elements=(3, 8))
    with pytest.raises(KldmError, match="atomic number 22 are kept"):
        targets.constraints.check(small_dng_model().processes, targets.store)


def test_without_constraints_the_model_s_own_processes_are_used() -> None:
    model, store = small_dng_model(), random_store((2, 3))
    bound = constrained(model, Constraints(), store, [1, 0])
    assert dict(bound.processes) == dict(model.processes)
    sampled = store.batch([1, 0])
    assert bound.restored(sampled).fractional is sampled.fractional
