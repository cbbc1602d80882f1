from math import inf, nan, pi

import numpy as np
import pytest
import torch
from ase import Atoms
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import DummySpecies, Species
from pymatgen.core.structure import Structure
from torch import Tensor
from torch_geometric.data import Batch, Data

from kldm.crystals import Crystals, CrystalStore, Layout
from kldm.data.arrays import wrapped
from kldm.data.convert import (
    from_ase,
    from_pyg,
    from_structures,
    to_ase,
    to_pyg,
    to_structure_or_reason,
    to_structures,
)
from kldm.errors import KldmError


def crystals(sizes: tuple[int, ...] = (1, 3, 2), seed: int = 0, dtype: torch.dtype = torch.float32) -> Crystals:
    rng = torch.Generator().manual_seed(seed)
    layout = Layout.of(sizes)
    lengths = 3 + 5 * torch.rand(len(sizes), 3, generator=rng, dtype=dtype)
    angles = 1.2 + 0.7 * torch.rand(len(sizes), 3, generator=rng, dtype=dtype)
    return Crystals(
        fractional=torch.rand(layout.total, 3, generator=rng, dtype=dtype),
        lattice=torch.cat([lengths, angles], 1),
        species=torch.randint(1, 101, (layout.total,), generator=rng),
        layout=layout,
    )


def assert_same(a: Crystals | CrystalStore, b: Crystals | CrystalStore, tolerance: float = 2e-6) -> None:
    assert a.layout.sizes == b.layout.sizes
    assert torch.equal(a.species, b.species)
    torch.testing.assert_close(a.lattice, b.lattice, rtol=tolerance, atol=tolerance, check_dtype=False)
    distance = (a.fractional - b.fractional + 0.5) % 1 - 0.5
    assert distance.abs().max() < tolerance
    assert ((b.fractional >= 0) & (b.fractional < 1)).all()


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_there_and_back(sizes: list[int], seed: int) -> None:
    batch = crystals(tuple(sizes), seed)
    assert_same(batch, from_structures(to_structures(batch)))
    assert_same(batch, from_ase(to_ase(batch)))
    assert_same(batch, from_pyg(to_pyg(batch)))


def test_store_and_ids() -> None:
    store = from_structures(to_structures(crystals()), ids=["a", "b", "c"])
    assert store.ids == ("a", "b", "c")
    assert store.fractional.dtype == store.lattice.dtype == torch.float32
    assert_same(store, from_structures(to_structures(store)))
    assert from_structures(to_structures(store)).ids == ("0", "1", "2")
    with pytest.raises(KldmError, match="3 structures, but 2 ids"):
        from_structures(to_structures(store), ids=["a", "b"])
    assert len(from_structures([])) == 0


def test_angles_are_degrees_outside_and_radians_inside() -> None:
    given = Structure(Lattice.from_parameters(3, 4, 5, 70, 80, 100), ["Na"], [[0.1, 0.2, 0.3]])
    store = from_structures([given])
    expected = torch.tensor([[3, 4, 5, *(angle * pi / 180 for angle in (70, 80, 100))]])
    torch.testing.assert_close(store.lattice, expected)
    assert to_structures(store)[0].lattice.parameters == pytest.approx((3, 4, 5, 70, 80, 100), rel=1e-6)
    assert to_ase(store)[0].cell.cellpar() == pytest.approx([3, 4, 5, 70, 80, 100], rel=1e-6)
    assert to_pyg(store).angles.tolist()[0] == pytest.approx([70, 80, 100], rel=1e-6)


@pytest.mark.parametrize("way", ["pymatgen", "ase"])
def test_left_handed_cells_keep_their_chirality(way: str) -> None:
    matrix = np.array([[4.0, 0.3, 0.1], [0.2, 5.0, 0.4], [0.6, 0.5, 6.0]])[[1, 0, 2]]
    assert np.linalg.det(matrix) < 0
    fractional = np.array([[0.0, 0, 0], [0.3, 0.1, 0.2], [0.15, 0.6, 0.35], [0.7, 0.25, 0.8]])
    if way == "pymatgen":
        store = from_structures([Structure(Lattice(matrix), ["Na", "Cl", "O", "Fe"], fractional)])
    else:
        store = from_ase([Atoms("NaClOFe", cell=matrix, scaled_positions=fractional, pbc=True)])
    moved = store.fractional.double().numpy()
    shift = np.rint(moved - (-fractional))  # undo the wrapping, to compare one unbroken group of four atoms
    unbroken = (moved - shift) @ to_structures(store)[0].lattice.matrix
    given = fractional @ matrix
    assert np.linalg.det(unbroken[1:] - unbroken[0]) == pytest.approx(np.linalg.det(given[1:] - given[0]), rel=1e-5)


def test_coordinates_are_wrapped_below_one() -> None:
    values = wrapped(np.array([0.99999999999, -1e-12, 1.0, -0.25, 3.5, 0.0]))
    assert values.dtype == np.float32
    assert values.tolist() == [0, 0, 0, 0.75, 0.5, 0]


BAD = [
    ("lattice", (0, 0), nan, "not finite"),
    ("lattice", (0, 4), inf, "not finite"),
    ("fractional", (0, 1), nan, "coordinates"),
    ("lattice", (0, 1), 0.0, "not positive"),
    ("lattice", (0, 1), -2.0, "not positive"),
    ("lattice", (0, 3), 0.0, "outside 0 to 180"),
    ("lattice", (0, 5), pi + 0.1, "outside 0 to 180"),
    ("lattice", (0, 5), 3.1, "flat or impossible"),
    ("species", (0,), 0, "atomic number 0"),
    ("species", (0,), 119, "atomic number 119"),
    ("species", (0,), -5, "atomic number -5"),
]


@pytest.mark.parametrize(("field", "index", "value", "reason"), BAD)
def test_a_bad_crystal_costs_itself_alone(field: str, index: tuple[int, ...], value: float, reason: str) -> None:
    good = crystals()
    values: Tensor = getattr(good, field).clone()
    values[index] = value
    tensors = {"fractional": good.fractional, "lattice": good.lattice, "species": good.species, field: values}
    bad = Crystals(tensors["fractional"], tensors["lattice"], tensors["species"], good.layout)
    results = to_structure_or_reason(bad)
    assert results[0][0] is None
    assert reason in results[0][1]
    assert [why for _, why in results[1:]] == ["", ""]
    assert all(structure is not None for structure, _ in results[1:])
    with pytest.raises(KldmError, match="crystal 0: "):
        to_structures(bad)
    with pytest.raises(KldmError, match="crystal 0: "):
        to_ase(bad)


numbers = st.floats(allow_nan=True, allow_infinity=True, width=32)


@given(st.lists(numbers, min_size=6, max_size=6), st.lists(numbers, min_size=6, max_size=6), st.integers(-200, 200))
@settings(max_examples=200, deadline=None)
def test_nothing_raises(lattice: list[float], fractional: list[float], z: int) -> None:
    batch = Crystals(torch.tensor(fractional).view(2, 3), torch.tensor([lattice]), torch.tensor([z, 1]), Layout.of([2]))
    [(structure, reason)] = to_structure_or_reason(batch)
    assert (structure is None) == bool(reason)


def test_flat_cell_with_possible_angles() -> None:
    """Three angles that add up to a full turn: the vectors lie in one plane."""
    third = 2 * pi / 3
    flat = evolve(crystals((1,), dtype=torch.float64), lattice=torch.tensor([[3, 3, 3, third, third, third]]).double())
    assert "flat" in to_structure_or_reason(flat)[0][1]
    nearly = evolve(flat, lattice=torch.tensor([[3, 3, 3, third, third, third - 0.01]]).double())
    assert to_structure_or_reason(nearly)[0][1] == ""


def test_structures_that_cannot_be_taken() -> None:
    good = Structure(Lattice.cubic(3), ["Na"], [[0, 0, 0]])
    disordered = Structure(Lattice.cubic(3), [{"Na": 0.5}], [[0, 0, 0]])
    with pytest.raises(KldmError, match=r"structure 1 \(b\): it is disordered"):
        from_structures([good, disordered], ids=["a", "b"])
    with pytest.raises(KldmError, match=r"structure 0 \(0\): X0\+ is no element"):
        from_structures([Structure(Lattice.cubic(3), [DummySpecies("X")], [[0, 0, 0]])])
    with pytest.raises(KldmError, match="there are no atoms"):
        from_structures([Structure(Lattice.cubic(3), [], [])])


def test_oxidation_states_are_dropped() -> None:
    ionic = Structure(Lattice.cubic(4), [Species("Na", 1), Species("Cl", -1)], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    assert from_structures([ionic]).species.tolist() == [11, 17]


def test_atoms_that_cannot_be_taken() -> None:
    with pytest.raises(KldmError, match="not periodic"):
        from_ase([Atoms("Na", cell=[3, 3, 3], pbc=[True, True, False])])
    with pytest.raises(KldmError, match="no volume"):
        from_ase([Atoms("Na", cell=[3, 3, 0], pbc=True)])


def test_pyg_fields() -> None:
    batch = crystals((1, 3, 2))
    graph = to_pyg(batch)
    assert isinstance(graph, Batch)
    assert graph.num_graphs == 3
    assert torch.equal(graph.batch, batch.layout.owner)
    assert torch.equal(graph.ptr, batch.layout.ptr)
    assert torch.equal(graph.num_atoms, batch.layout.num_atoms)
    assert torch.equal(graph.edge_index, batch.layout.edge_index)
    assert torch.equal(graph.frac_coords, batch.fractional)
    assert torch.equal(graph.atom_types, batch.species)
    assert torch.equal(graph.lengths, batch.lattice[:, :3])
    second = graph.to_data_list()[1]
    assert second.num_nodes == 3
    assert second.edge_index.T.tolist() == [[1, 0], [2, 0], [0, 1], [2, 1], [0, 2], [1, 2]]


def test_one_data_by_itself() -> None:
    batch = crystals((3,))
    data = to_pyg(batch).to_data_list()[0]
    assert isinstance(data, Data)
    data.num_atoms = 3
    assert_same(batch, from_pyg(data))


def test_pyg_data_that_do_not_fit() -> None:
    with pytest.raises(KldmError, match="lack atom_types, lengths, angles, num_atoms"):
        from_pyg(Data(frac_coords=torch.zeros(1, 3)))
    graph = to_pyg(crystals((2, 2)))
    graph.num_atoms = torch.tensor([2, 1])
    with pytest.raises(KldmError, match="num_atoms counts 3 atoms in 2 crystals, but there are 4 coordinates"):
        from_pyg(graph)
