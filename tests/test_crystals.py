from collections.abc import Callable
from itertools import combinations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core.lattice import Lattice

from kldm.crystals import Crystals, CrystalStore, Layout, concatenated, lattice_matrix
from kldm.errors import KldmError

some_sizes = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def atoms_by_crystal(sizes: list[int]) -> list[list[int]]:
    first = 0
    result = []
    for size in sizes:
        result.append(list(range(first, first + size)))
        first += size
    return result


def store(sizes: list[int]) -> CrystalStore:
    """Numbers that name themselves: atom n has coordinates near n / 100, species n + 1 and moment [n, -n], crystal m
    lengths m and energy m / 10."""
    total = sum(sizes)
    return CrystalStore(
        fractional=torch.arange(total * 3).view(total, 3) / 300,
        species=torch.arange(1, total + 1),
        lattice=torch.arange(len(sizes) * 6, dtype=torch.float32).view(-1, 6),
        sizes=tuple(sizes),
        ids=tuple(f"id-{m}" for m in range(len(sizes))),
        per_crystal={"energy": torch.arange(len(sizes)) / 10},
        per_atom={"moment": torch.stack([torch.arange(total), -torch.arange(total)], -1)},
    )


@given(some_sizes)
@settings(deadline=None)
def test_owner_and_ptr(sizes: list[int]) -> None:
    layout = Layout.of(sizes)
    groups = atoms_by_crystal(sizes)
    assert (len(layout), layout.total, layout.sizes) == (len(sizes), sum(sizes), tuple(sizes))
    assert layout.num_atoms.tolist() == sizes
    assert layout.ptr.tolist() == [group[0] for group in groups] + [sum(sizes)]
    assert layout.owner.tolist() == [b for b, group in enumerate(groups) for _ in group]


@given(some_sizes)
@settings(deadline=None)
def test_pairs_are_all_pairs_in_order(sizes: list[int]) -> None:
    layout = Layout.of(sizes)
    groups = atoms_by_crystal(sizes)
    expected = [(i, j) for group in groups for i, j in combinations(group, 2)]
    pairs = layout.pairs
    assert list(zip(pairs.i.tolist(), pairs.j.tolist(), strict=True)) == expected
    assert pairs.i.dtype == pairs.j.dtype == pairs.degree.dtype == torch.int64
    receivers = [i for i, _ in expected] + [j for _, j in expected]
    senders = [j for _, j in expected] + [i for i, _ in expected]
    for order, ends in ((pairs.by_receiver, receivers), (pairs.by_sender, senders)):
        assert sorted(order.tolist()) == list(range(2 * len(expected)))
        by_atom = [ends[edge] for edge in order.tolist()]
        assert by_atom == [atom for atom, count in enumerate(pairs.degree.tolist()) for _ in range(count)]


@given(some_sizes)
@settings(deadline=None)
def test_edges_are_all_directed_pairs_sorted_by_target(sizes: list[int]) -> None:
    edge_index = Layout.of(sizes).edge_index
    assert edge_index.shape == (2, sum(size * (size - 1) for size in sizes))
    expected = [
        (source, target)
        for group in atoms_by_crystal(sizes)
        for target in group
        for source in group
        if source != target
    ]
    assert [tuple(edge) for edge in edge_index.T.tolist()] == expected


def test_lone_atoms_have_no_pairs() -> None:
    layout = Layout.of([1, 1, 1])
    assert layout.pairs.i.shape == layout.pairs.j.shape == (0,)
    assert layout.edge_index.shape == (2, 0)
    assert layout.edge_index.dtype == torch.int64


@given(some_sizes, st.sampled_from([(), (3,), (2, 2), (33,)]))
@settings(deadline=None)
def test_reductions_against_loops(sizes: list[int], shape: tuple[int, ...]) -> None:
    layout = Layout.of(sizes)
    values = torch.randn(layout.total, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    groups = atoms_by_crystal(sizes)
    sums = torch.stack([sum((values[n] for n in group), torch.zeros(shape).double()) for group in groups])
    means = torch.stack([values[group].mean(0) for group in groups])
    torch.testing.assert_close(layout.sum(values), sums)
    torch.testing.assert_close(layout.mean(values), means)
    spread = torch.cat([means[b].expand(len(group), *shape) for b, group in enumerate(groups)])
    assert torch.equal(layout.per_atom(means), spread)
    torch.testing.assert_close(layout.centred(values), values - spread)
    torch.testing.assert_close(layout.mean(layout.centred(values)), torch.zeros_like(means), atol=1e-12, rtol=0)


@pytest.mark.parametrize("width", [2, 33])
def test_reductions_pass_gradients(width: int) -> None:
    layout = Layout.of([2, 3])
    values = torch.randn(5, width, dtype=torch.float64, requires_grad=True)
    functions: list[Callable[[torch.Tensor], torch.Tensor]] = [layout.sum, layout.mean, layout.centred]
    for function in functions:
        assert torch.autograd.gradcheck(function, (values,))
        assert torch.autograd.gradgradcheck(function, (values,))


def test_columns_repeat_the_numbers_of_crystals_for_their_atoms() -> None:
    first, second = Layout.of([2, 1]).columns(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    assert first.tolist() == [[1.0], [1.0], [2.0]]
    assert second.tolist() == [[3.0], [3.0], [4.0]]


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), most=st.integers(1, 200))
@settings(deadline=None)
def test_parts_of_a_layout(sizes: list[int], most: int) -> None:
    layout = Layout.of(sizes)
    parts = layout.parts(most)
    atoms, crystals = torch.arange(sum(sizes)), torch.arange(len(sizes))
    assert torch.cat([atoms[part.atoms] for part in parts]).equal(atoms)
    assert torch.cat([crystals[part.crystals] for part in parts]).equal(crystals)
    for part in parts:
        assert part.layout.num_atoms.equal(layout.num_atoms[part.crystals])
        assert part.layout.total == len(atoms[part.atoms])
        assert len(part.layout) == 1 or 2 * len(part.layout.pairs.i) <= most
    assert layout.parts(most) is parts, "made once for all steps of a sampler"


def test_no_crystal_is_empty() -> None:
    with pytest.raises(ValueError, match="at least one atom"):
        Layout.of([2, 0])


@given(some_sizes, st.data())
@settings(deadline=None)
def test_a_batch_holds_its_rows_in_order(sizes: list[int], data: st.DataObject) -> None:
    everything = store(sizes)
    rows = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=8))
    batch = everything.batch(rows)
    groups = atoms_by_crystal(sizes)
    atoms = [n for row in rows for n in groups[row]]
    assert batch.layout.sizes == tuple(sizes[row] for row in rows)
    assert torch.equal(batch.fractional, everything.fractional[atoms])
    assert batch.species.tolist() == [n + 1 for n in atoms]
    assert torch.equal(batch.lattice, everything.lattice[rows])
    assert batch.per_crystal.keys() == {"energy"}
    assert torch.equal(batch.per_crystal["energy"], torch.tensor(rows) / 10)
    assert batch.per_atom.keys() == {"moment"}
    assert batch.per_atom["moment"].tolist() == [[n, -n] for n in atoms]


@given(some_sizes, st.data())
@settings(deadline=None)
def test_the_parts_of_a_store_are_joined_to_it_again(sizes: list[int], data: st.DataObject) -> None:
    everything = store(sizes)
    cut = data.draw(st.integers(1, len(sizes)))
    rows = [list(range(cut)), list(range(cut, len(sizes)))]
    again = concatenated([everything.subset(part) for part in rows if part])
    assert (again.sizes, again.ids) == (everything.sizes, everything.ids)
    for found, wanted in (
        (again.fractional, everything.fractional),
        (again.species, everything.species),
        (again.lattice, everything.lattice),
        (again.per_crystal["energy"], everything.per_crystal["energy"]),
        (again.per_atom["moment"], everything.per_atom["moment"]),
    ):
        assert torch.equal(found, wanted)


def test_stores_of_other_columns_are_not_joined() -> None:
    with pytest.raises(KldmError, match=r"per_crystal\['energy'\]: not all of the stores have this column"):
        concatenated([store([1, 2]), attrs.evolve(store([3]), per_crystal={})])


@pytest.mark.parametrize("make", [store, lambda sizes: store(sizes).batch(range(len(sizes)))], ids=["store", "batch"])
def test_a_column_has_a_row_for_each_crystal_or_each_atom(make: Callable[[list[int]], CrystalStore | Crystals]) -> None:
    crystals = make([2, 3])
    with pytest.raises(KldmError, match=r"per_crystal\['x'\]: must have one row for each crystal, 2 in all, .* \(5,\)"):
        attrs.evolve(crystals, per_crystal={"x": torch.zeros(5)})
    with pytest.raises(KldmError, match=r"per_atom\['x'\]: must have one row for each atom, 5 in all, .* \(2, 3\)"):
        attrs.evolve(crystals, per_atom={"x": torch.zeros(2, 3)})
    with pytest.raises(KldmError, match=r"per_crystal\['x'\]: must have one row .* \(\)"):
        attrs.evolve(crystals, per_crystal={"x": torch.tensor(1.0)})
    with pytest.raises(KldmError, match="two columns are called 'energy'"):
        attrs.evolve(crystals, per_atom={"energy": torch.zeros(5)})


def test_what_a_column_belongs_to_is_told_where_there_are_as_many_atoms_as_crystals() -> None:
    part = store([1, 1, 1]).subset([2, 0])
    assert part.per_crystal.keys() == {"energy"}
    assert part.per_atom.keys() == {"moment"}


def test_subset() -> None:
    part = store([1, 3, 2, 4]).subset([2, 0])
    assert (part.sizes, part.ids) == ((2, 1), ("id-2", "id-0"))
    assert part.species.tolist() == [5, 6, 1]
    assert part.batch([1]).species.tolist() == [1]


def test_moving_keeps_everything() -> None:
    moved = store([1, 2]).to("meta")
    assert moved.fractional.device.type == moved.species.device.type == moved.lattice.device.type == "meta"
    assert moved.per_crystal["energy"].device.type == moved.per_atom["moment"].device.type == "meta"
    assert (moved.sizes, moved.ids) == ((1, 2), ("id-0", "id-1"))
    batch: Crystals = store([1, 2]).batch([1]).to("meta")
    assert batch.layout.num_atoms.device.type == batch.device.type == "meta"
    assert batch.per_crystal["energy"].device.type == batch.per_atom["moment"].device.type == "meta"
    assert batch.layout.sizes == (2,)


angle = st.floats(30.0, 150.0)
length = st.floats(1.0, 30.0)


@given(st.tuples(length, length, length), st.tuples(angle, angle, angle))
@settings(deadline=None, max_examples=200)
def test_lattice_matrix_is_pymatgens(lengths: tuple[float, ...], angles: tuple[float, ...]) -> None:
    cosines = torch.deg2rad(torch.tensor(angles, dtype=torch.float64)).cos()
    squared_volume = 1 - cosines.square().sum() + 2 * cosines.prod()
    if squared_volume < 1e-3:
        return
    radians = torch.deg2rad(torch.tensor([angles], dtype=torch.float64))
    ours = lattice_matrix(torch.cat([torch.tensor([lengths], dtype=torch.float64), radians], 1))
    theirs = Lattice.from_parameters(*lengths, *angles).matrix
    torch.testing.assert_close(ours[0], torch.tensor(theirs), rtol=1e-9, atol=1e-7)


def test_lattice_matrix_is_differentiable() -> None:
    lattice = torch.tensor([[3, 4, 5, 1.4, 1.5, 1.7]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lattice_matrix, (lattice,))
