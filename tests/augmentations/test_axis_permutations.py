"""The six orders of the axes: the same crystal to the last distance, and its handedness."""

import itertools
from math import prod

import attrs
import numpy as np
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core.lattice import Lattice
from torch import Tensor

from kldm.augmentations import AxisPermutations
from kldm.crystals import Crystals, Layout, lattice_matrix
from kldm.data.convert import to_structures
from tests.oracles import random_crystals
from tests.small import needs_gpu

ORDERS = list(itertools.permutations(range(3)))
SIGNS = {order: prod(1 if a < b else -1 for a, b in itertools.combinations(order, 2)) for order in ORDERS}
MANY = 6000


def repeated(count: int) -> Crystals:
    """A crystal of five atoms without any symmetry, many times."""
    crystal = random_crystals((5,), seed=3)
    species = torch.tensor([11, 17, 8, 8, 26])
    layout = Layout.of([5] * count)
    return Crystals(
        crystal.fractional.repeat(count, 1), crystal.lattice.repeat(count, 1), species.repeat(count), layout
    )


def drawn(crystals: Crystals, seed: int = 0, keep_handedness: bool = True) -> Crystals:
    augmentation = AxisPermutations(keep_handedness=keep_handedness)
    return augmentation.augmented(crystals, torch.Generator().manual_seed(seed))


def orders_of(augmented: Crystals, original: Crystals) -> list[tuple[int, ...]]:
    """Which order each crystal got, read off its lengths."""
    lengths = original.lattice[0, :3]
    return [tuple(int((lengths == value).nonzero()) for value in row[:3]) for row in augmented.lattice]


def orientation(crystal: Crystals, order: tuple[int, ...], original: Crystals, sign: float) -> Tensor:
    """The orthogonal matrix that takes the rebuilt axes to the ones they are said to be."""
    said = sign * lattice_matrix(original.lattice)[0][list(order)]
    turn: Tensor = torch.linalg.solve(lattice_matrix(crystal.lattice)[0], said)
    return turn


@pytest.fixture(scope="module")
def six() -> dict[tuple[int, ...], Crystals]:
    """One crystal for each order of the axes, with its handedness kept."""
    return first_of_each(keep_handedness=True)


def first_of_each(keep_handedness: bool) -> dict[tuple[int, ...], Crystals]:
    original = repeated(60)
    augmented = drawn(original, keep_handedness=keep_handedness)
    found: dict[tuple[int, ...], Crystals] = {}
    for number, order in enumerate(orders_of(augmented, original)):
        rows = slice(5 * number, 5 * number + 5)
        crystal = Crystals(
            augmented.fractional[rows], augmented.lattice[number : number + 1], augmented.species[rows], Layout.of([5])
        )
        found.setdefault(order, crystal)
    assert set(found) == set(ORDERS)
    return found


@pytest.mark.parametrize("keep_handedness", [True, False])
def test_every_order_is_the_same_crystal(keep_handedness: bool) -> None:
    original = repeated(1)
    (truth,) = to_structures(original)
    for order, crystal in first_of_each(keep_handedness).items():
        (augmented,) = to_structures(crystal)
        np.testing.assert_allclose(augmented.distance_matrix, truth.distance_matrix, atol=1e-9)
        expected = Lattice(truth.lattice.matrix[list(order)])
        assert augmented.lattice.parameters == pytest.approx(expected.parameters)
        match = StructureMatcher(primitive_cell=False, scale=False).get_rms_dist(truth, augmented)  # type: ignore[no-untyped-call]
        assert match is not None
        assert match[0] < 1e-8


def test_coordinates_follow_their_axes(six: dict[tuple[int, ...], Crystals]) -> None:
    original = repeated(1)
    for order, crystal in six.items():
        expected = original.fractional[:, list(order)]
        torch.testing.assert_close(crystal.fractional, expected if SIGNS[order] > 0 else 1 - expected)


def test_kept_handedness_is_a_rotation_of_the_crystal(six: dict[tuple[int, ...], Crystals]) -> None:
    original = repeated(1)
    for order, crystal in six.items():
        turn = orientation(crystal, order, original, SIGNS[order])
        torch.testing.assert_close(turn @ turn.T, torch.eye(3, dtype=torch.float64))
        assert float(torch.det(turn)) == pytest.approx(1)


def volume(crystal: Crystals) -> float:
    """Signed volume, in cubic angstrom, that three species span about a fourth: a mirror changes its sign.

    Images are chosen by fractional coordinates, the same in every description.
    """
    steps = crystal.fractional[[0, 1, 4]] - crystal.fractional[2]
    steps = steps - steps.round()
    return float(torch.det(steps @ lattice_matrix(crystal.lattice)[0]))


def test_a_chiral_crystal_keeps_its_hand_or_shows_both() -> None:
    truth = volume(repeated(1))
    assert abs(truth) > 0.5
    for order, crystal in first_of_each(keep_handedness=True).items():
        assert volume(crystal) == pytest.approx(truth), order
    for order, crystal in first_of_each(keep_handedness=False).items():
        assert volume(crystal) == pytest.approx(SIGNS[order] * truth), order


def test_all_orders_are_equally_likely_and_drawn_per_crystal() -> None:
    original = repeated(MANY)
    found = orders_of(drawn(original), original)
    counts = np.array([found.count(order) for order in ORDERS])
    assert counts.sum() == MANY
    assert ((counts - MANY / 6) ** 2 / (MANY / 6)).sum() < 20.5  # chi-square of 5 degrees of freedom at 0.1 %
    follows = np.array([found[number] == found[number + 1] for number in range(MANY - 1)])
    assert follows.mean() == pytest.approx(1 / 6, abs=0.02)


def test_the_generator_alone_decides() -> None:
    original = repeated(50)
    first, second, other = drawn(original), drawn(original), drawn(original, seed=1)
    assert torch.equal(first.fractional, second.fractional)
    assert torch.equal(first.lattice, second.lattice)
    assert not torch.equal(first.lattice, other.lattice)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positions_stay_below_one_however_small_they_were(dtype: torch.dtype) -> None:
    """-1e-30 modulo 1 rounds to 1."""
    layout = Layout.of([2] * 40)
    tiny = torch.tensor([0.0, 1e-30, 1 - torch.finfo(dtype).eps], dtype=dtype).repeat(80, 1)
    lattice = random_crystals((2,) * 40, seed=0, dtype=dtype).lattice
    augmented = drawn(Crystals(tiny, lattice, torch.ones(80, dtype=torch.int64), layout))
    assert augmented.fractional.dtype == augmented.lattice.dtype == dtype
    assert ((augmented.fractional >= 0) & (augmented.fractional < 1)).all()


def test_the_crystals_given_stay_as_they_are() -> None:
    original = repeated(20)
    before = attrs.evolve(original, fractional=original.fractional.clone(), lattice=original.lattice.clone())
    augmented = drawn(original)
    assert torch.equal(original.fractional, before.fractional)
    assert torch.equal(original.lattice, before.lattice)
    assert augmented.species is original.species
    assert augmented.layout is original.layout


@needs_gpu
def test_on_the_gpu_all_stays_there() -> None:
    augmented = AxisPermutations().augmented(repeated(4).to("cuda"), torch.Generator("cuda").manual_seed(0))
    assert augmented.fractional.device.type == augmented.lattice.device.type == "cuda"
