"""Requests are grouped by a budget of pairs and answered in order; failures are kept."""

from collections.abc import Callable, Mapping
from itertools import pairwise

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kldm.crystals import Crystals, CrystalStore
from kldm.interfaces import DiffusionProcess, GenerativeModel
from kldm.runtime.distributed import World, world
from kldm.samplers import EulerMaruyama
from kldm.sampling.generation import CandidateRequest, batches, candidates, generate, requests
from kldm.sampling.targets import compositions
from tests.small import random_store, small_model
from tests.worlds import together

SIZES = (3, 1, 5, 2, 5, 1)
TARGETS = random_store(SIZES)


@attrs.frozen
class Echo:
    """A sampler whose crystals show their target; it spoils those that ``spoil`` names."""

    steps: int = 2
    spoil: tuple[int, ...] = ()

    def check(self, processes: Mapping[str, DiffusionProcess]) -> None:
        return

    def sample(
        self,
        model: GenerativeModel,
        given: Crystals,
        rng: torch.Generator,
        progress: Callable[[int], None] | None = None,
    ) -> Crystals:
        lattice = given.lattice.clone()
        for row, size in enumerate(given.layout.sizes):
            if size in self.spoil:
                lattice[row] = float("nan")
        return attrs.evolve(given, lattice=lattice)


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 4000))
def test_groups_hold_everything_once_within_the_budget(sizes: list[int], max_pairs: int) -> None:
    groups = batches(sizes, max_pairs)
    assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
    for group in groups:
        pairs = sum(sizes[index] * (sizes[index] - 1) for index in group)
        assert pairs <= max_pairs or len(group) == 1
    order = [sizes[index] for group in groups for index in group]
    assert order == sorted(order, reverse=True)
    for group, following in pairwise(groups):  # none is left with room for the next crystal
        cost = sum(max(1, sizes[i] * (sizes[i] - 1)) for i in (*group, following[0]))
        assert cost > max_pairs


def test_requests_are_candidate_by_candidate() -> None:
    assert requests(2, 2) == (
        CandidateRequest(0, 0),
        CandidateRequest(1, 0),
        CandidateRequest(0, 1),
        CandidateRequest(1, 1),
    )
    assert len(requests(7, 3)) == 21


@pytest.mark.parametrize("max_pairs", [1, 25, 64_000])
def test_answers_come_in_the_order_of_the_requests(max_pairs: int) -> None:
    wanted = (*requests(len(SIZES), 2), CandidateRequest(2, 5))
    found = generate(small_model(), Echo(), TARGETS, wanted, seed=0, max_pairs=max_pairs)
    asked = [request.target for request in wanted]
    assert found.sizes == tuple(SIZES[target] for target in asked)
    assert found.ids == tuple(TARGETS.ids[target] for target in asked)
    expected = TARGETS.batch(asked)
    assert torch.equal(found.lattice, expected.lattice)
    assert torch.equal(found.species, expected.species)
    assert torch.equal(found.fractional, expected.fractional)


def test_a_real_sampler_keeps_every_composition_and_makes_candidates_differ() -> None:
    wanted = requests(len(SIZES), 2)
    model, sampler = small_model(), EulerMaruyama(steps=3)
    runs = [generate(model, sampler, TARGETS, wanted, seed=seed, max_pairs=20) for seed in (4, 4, 5)]
    expected = TARGETS.batch([request.target for request in wanted])
    for found in runs:
        assert found.sizes == expected.layout.sizes
        assert torch.equal(found.species, expected.species)
    assert torch.equal(runs[0].fractional, runs[1].fractional)
    assert torch.equal(runs[0].lattice, runs[1].lattice)
    assert not torch.equal(runs[0].lattice, runs[2].lattice)
    first, second = runs[0].batch(range(6)), runs[0].batch(range(6, 12))
    assert not torch.isclose(first.lattice, second.lattice).any()


@attrs.frozen
class Noted:
    """Records which process draws which crystals."""

    sampler: EulerMaruyama
    done: list[tuple[int, tuple[int, ...]]] = attrs.field(factory=list)

    @property
    def steps(self) -> int:
        return self.sampler.steps

    def check(self, processes: Mapping[str, DiffusionProcess]) -> None:
        self.sampler.check(processes)

    def sample(
        self,
        model: GenerativeModel,
        given: Crystals,
        rng: torch.Generator,
        progress: Callable[[int], None] | None = None,
    ) -> Crystals:
        self.done.append((world().rank, given.layout.sizes))
        return self.sampler.sample(model, given, rng, progress)


@pytest.mark.parametrize("max_pairs", [25, 64_000], ids=["more batches", "one batch"])
def test_processes_of_a_run_share_the_batches_and_all_get_the_same_samples(max_pairs: int) -> None:
    wanted, model, sampler = requests(len(SIZES), 2), small_model(), Noted(EulerMaruyama(steps=3))

    def sample(_: World) -> CrystalStore:
        return generate(model, sampler, TARGETS, wanted, seed=4, max_pairs=max_pairs)

    alone = sample(World())
    batches_of_one = [sizes for _, sizes in sampler.done]
    sampler.done.clear()
    for found in together(2, sample):
        assert (found.sizes, found.ids) == (alone.sizes, alone.ids)
        for name in ("fractional", "lattice", "species"):
            assert torch.equal(getattr(found, name), getattr(alone, name))
    assert sorted(sampler.done) == sorted((number % 2, sizes) for number, sizes in enumerate(batches_of_one))


def test_the_targets_coordinates_and_cells_are_not_looked_at() -> None:
    other = random_store(SIZES, seed=9)
    disguised = CrystalStore(other.fractional, TARGETS.species, other.lattice, SIZES, TARGETS.ids)
    wanted = requests(len(SIZES), 1)
    first, second = (
        generate(small_model(), EulerMaruyama(steps=3), targets, wanted, seed=0, max_pairs=64_000)
        for targets in (TARGETS, disguised)
    )
    assert torch.equal(first.fractional, second.fractional)
    assert torch.equal(first.lattice, second.lattice)


def test_a_structure_that_cannot_be_built_is_kept_with_its_reason() -> None:
    wanted = requests(len(SIZES), 2)
    found = generate(small_model(), Echo(spoil=(2,)), TARGETS, wanted, seed=0, max_pairs=30)
    made = candidates(found, wanted)
    assert [(c.target, c.candidate) for c in made] == [(r.target, r.candidate) for r in wanted]
    assert [c.target for c in made if c.structure is None] == [3, 3]
    assert all(("finite" in c.reason) == (c.target == 3) for c in made)
    for candidate in made:
        if candidate.structure is not None:
            assert len(candidate.structure) == SIZES[candidate.target]


def test_compositions_are_targets() -> None:
    targets = compositions([(11, 17), (8,)], ["NaCl", "O"])
    assert (targets.sizes, targets.ids, targets.species.tolist()) == ((2, 1), ("NaCl", "O"), [11, 17, 8])
    found = generate(small_model(), EulerMaruyama(steps=2), targets, requests(2, 3), seed=0, max_pairs=100)
    assert (found.sizes, found.ids) == ((2, 1) * 3, ("NaCl", "O") * 3)
    assert found.species.tolist() == [11, 17, 8] * 3
