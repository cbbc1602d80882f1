"""Targets of generation: sizes from the training set, numbers and ranges; known parts of crystals."""

from collections import Counter

import pytest
import torch

from kldm.errors import KldmError
from kldm.sampling.targets import KnownPart, atom_range, compositions, de_novo, drawn_sizes, given_species, histogram
from tests.small import random_store


def test_empirical_sizes_are_as_frequent_as_in_the_training_set() -> None:
    counts = histogram(random_store((2,) * 30 + (5,) * 10 + (9,) * 60))
    assert counts == {"2": 30, "5": 10, "9": 60}
    drawn = Counter(drawn_sizes("empirical", counts, 10_000, seed=0))
    assert set(drawn) == {2, 5, 9}
    for size, share in ((2, 0.3), (5, 0.1), (9, 0.6)):
        assert drawn[size] / 10_000 == pytest.approx(share, abs=4 * (share * (1 - share) / 10_000) ** 0.5)


def test_the_seed_decides() -> None:
    counts = {"2": 1, "3": 1, "4": 1}
    first, again, other = (drawn_sizes("empirical", counts, 50, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("atoms", [8, "8", " 8 "])
def test_a_number(atoms: int | str) -> None:
    assert drawn_sizes(atoms, None, 4, seed=0) == (8,) * 4


def test_a_range_is_uniform() -> None:
    drawn = Counter(drawn_sizes("4-7", None, 8000, seed=0))
    assert set(drawn) == {4, 5, 6, 7}
    assert all(abs(number - 2000) < 160 for number in drawn.values())
    assert set(drawn_sizes("4-7", None, 100, seed=0, at_least=6)) == {6, 7}
    assert set(drawn_sizes("empirical", {"2": 900, "6": 1}, 100, seed=0, at_least=3)) == {6}


@pytest.mark.parametrize("atoms", ["", "0", 0, "-3", "7-4", "4-", "many", "4.5", "1-501", "4-20-30"])
def test_what_is_no_number_of_atoms(atoms: int | str) -> None:
    with pytest.raises(KldmError, match="wants 'empirical', a number of atoms or a range"):
        atom_range(atoms)


def test_a_draw_from_nothing_is_refused() -> None:
    with pytest.raises(KldmError, match="are not known"):
        drawn_sizes("empirical", None, 1, seed=0)
    with pytest.raises(KldmError, match="no crystal of 9 atoms or more"):
        drawn_sizes("4-8", None, 1, seed=0, at_least=9)


def test_compositions_and_nothing_else_are_known() -> None:
    targets = given_species(compositions([(11, 17), (8,)], ["NaCl", "O"]))
    assert targets.store.sizes == (2, 1)
    assert targets.constraints.names() == ("species",)
    assert targets.constraints.species is not None
    assert bool(targets.constraints.species.all())


def test_a_part_stands_first_in_every_crystal() -> None:
    part = KnownPart((3, 8), torch.tensor([[0.1, 0, 0], [0.2, 0, 0]]), None)
    store, rules = (found := de_novo([2, 4], part)).store, found.constraints
    assert store.species.tolist()[:4] == [3, 8, 3, 8]
    assert store.fractional[:, 0].tolist() == pytest.approx([0.1, 0.2, 0.1, 0.2, 0, 0])
    assert rules.species is not None
    assert rules.positions is not None
    assert rules.species.tolist() == rules.positions.tolist() == [True, True, True, True, False, False]
    assert rules.cell is None


def test_positions_may_be_known_where_species_are_not() -> None:
    rules = de_novo([2], KnownPart((3,), torch.zeros(1, 3), keeps_species=False)).constraints
    assert rules.names() == ("positions",)


def test_a_crystal_smaller_than_its_part_is_refused() -> None:
    with pytest.raises(KldmError, match="3 atoms are known, but a crystal is to have 2"):
        de_novo([4, 2], KnownPart((1, 2, 3)))
