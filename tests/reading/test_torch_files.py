"""The tensor files of CDVAE, DiffCSP and FlowMM: all layouts, bad crystals and broken files; no code is run."""

import argparse
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from kldm.errors import KldmError
from kldm.metrics.validity import structural_validity
from kldm.reading import read_file, read_samples

SIZES = (2, 1, 3)
CELLS = ((4.0, 5.0, 6.0, 80.0, 95.0, 110.0), (3.0, 3.0, 3.0, 90.0, 90.0, 90.0), (7.0, 7.0, 9.0, 90.0, 90.0, 120.0))


def batch(seed: int = 0) -> dict[str, Tensor]:
    """Three crystals without an axis of evaluations; the seed shifts all coordinates."""
    atoms = sum(SIZES)
    grid = torch.linspace(0.05, 0.85, atoms)
    cells = torch.tensor(CELLS)
    return {
        "frac_coords": torch.stack([grid, grid.flip(0), grid * 0.5], 1) + seed / 100,
        "atom_types": torch.tensor([11, 17, 26, 3, 8, 8]),
        "num_atoms": torch.tensor(SIZES),
        "lengths": cells[:, :3],
        "angles": cells[:, 3:],
    }


def stacked(evaluations: int) -> dict[str, Tensor]:
    batches = [batch(seed) for seed in range(evaluations)]
    return {name: torch.stack([content[name] for content in batches]) for name in batches[0]}


def crystals(seed: int = 0, convert: Callable[[Tensor], Any] = lambda tensor: tensor) -> list[dict[str, Any]]:
    """The crystals of ``batch`` as a list of single ones."""
    content, ends = batch(seed), np.cumsum(SIZES)
    return [
        {
            "frac_coords": convert(content["frac_coords"][end - size : end]),
            "atom_types": convert(content["atom_types"][end - size : end]),
            "lengths": convert(content["lengths"][row]),
            "angles": convert(content["angles"][row]),
        }
        for row, (size, end) in enumerate(zip(SIZES, ends, strict=True))
    ]


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def check(path: Path, evaluations: int, repeats: int = 1) -> None:
    """All crystals are there with their cells, elements and coordinates, as candidate e of target b."""
    found = read_file(path)
    assert found.labelled == (evaluations > 1)
    targets = len(SIZES) * repeats
    assert len(found.candidates) == evaluations * targets
    if evaluations > 1:
        wanted = {(target, number) for target in range(targets) for number in range(evaluations)}
        assert {(c.target, c.candidate) for c in found.candidates} == wanted
    for c in found.candidates:
        row, structure = c.target % len(SIZES), c.structure
        assert structure is not None, c.reason
        data, first = batch(c.candidate), sum(SIZES[:row])
        atoms = slice(first, first + SIZES[row])
        assert structure.lattice.parameters == pytest.approx(CELLS[row], abs=1e-6)
        assert [site.specie.Z for site in structure] == data["atom_types"][atoms].tolist()
        assert np.allclose(structure.frac_coords, data["frac_coords"][atoms].numpy(), atol=1e-12)


def test_without_evaluations(tmp_path: Path) -> None:
    check(save(tmp_path / "x.pt", batch()), 1)


@pytest.mark.parametrize("evaluations", [1, 3])
def test_evaluations(tmp_path: Path, evaluations: int) -> None:
    check(save(tmp_path / "x.pt", stacked(evaluations)), evaluations)


def test_asymmetric_units_are_no_crystals(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {**batch(), "spacegroups": torch.ones(3), "site_symmetries": torch.zeros(9, 15, 13)})
    with pytest.raises(KldmError, match="it holds asymmetric units, with their symmetry under 'site_symmetries'"):
        read_file(path)


def test_extras_of_the_peers_are_not_looked_at(tmp_path: Path) -> None:
    """CDVAE and DiffCSP put their command line and a torch-geometric batch beside the tensors."""
    ground = Batch.from_data_list([Data(x=torch.ones(2, 3), y=torch.ones(1), num_nodes=2, mp_id="mp-1")] * 2)
    extras = {
        "eval_setting": argparse.Namespace(model_path=Path("x"), tasks=["gen"], threshold=np.float64(0.5)),
        "input_data_batch": ground,
        "time": 12.5,
        "all_frac_coords_stack": torch.zeros(0),
    }
    check(save(tmp_path / "eval_gen.pt", {**extras, **stacked(2)}), 2)


def test_lists_of_batches(tmp_path: Path) -> None:
    check(save(tmp_path / "a.pt", {name: [tensor, tensor] for name, tensor in batch().items()}), 1, repeats=2)
    check(save(tmp_path / "b.pt", {name: [tensor, tensor] for name, tensor in stacked(2).items()}), 2, repeats=2)
    check(save(tmp_path / "c.pt", [batch(), batch()]), 1, repeats=2)
    check(save(tmp_path / "d.pt", [stacked(2), stacked(2)]), 2, repeats=2)


def targets(path: Path) -> list[tuple[int, int]]:
    return [(c.target, c.candidate) for c in read_samples(path)]


def test_rows_that_the_file_states(tmp_path: Path) -> None:
    """FlowMM's processes each answer every other row; its evaluations are lists beside each other. ADiT numbers single
    crystals."""
    rows = torch.tensor([2, 0, 1])
    assert targets(save(tmp_path / "a.pt", {**batch(), "batch_indices": rows})) == [(2, 0), (0, 0), (1, 0)]
    both = [(2, 0), (0, 0), (1, 0), (2, 1), (0, 1), (1, 1)]
    assert targets(save(tmp_path / "b.pt", {**stacked(2), "batch_indices": rows})) == both
    listed = {name: [tensor, tensor] for name, tensor in {**batch(), "batch_indices": rows}.items()}
    assert targets(save(tmp_path / "c.pt", listed)) == both
    parts = {**listed, "batch_indices": [torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5])]}
    assert targets(save(tmp_path / "d.pt", parts)) == [(row, 0) for row in (0, 2, 4, 1, 3, 5)]
    numbered = [{**crystal, "sample_idx": row} for crystal, row in zip(crystals(), (1, 2, 0), strict=True)]
    assert targets(save(tmp_path / "e.pt", {"crystal_list": numbered, "time": 1.0})) == [(1, 0), (2, 0), (0, 0)]
    named = [{**crystal, "sample_idx": f"mp-{row}"} for row, crystal in enumerate(crystals())]
    found = read_file(save(tmp_path / "f.pt", named))
    assert (found.labelled, found.names) == (False, ("mp-0", "mp-1", "mp-2"))


def test_types_that_count_from_zero_are_doubted(tmp_path: Path) -> None:
    found = read_file(save(tmp_path / "x.pt", {**batch(), "atom_types": torch.tensor([10, 16, 0, 2, 7, 7])}))
    assert [c.reason for c in found.candidates] == ["", "no element has the atomic number 0", ""]
    assert "atom_types holds 0, so that it may count the elements from 0" in found.notes[0]


def fortran(tensor: Tensor) -> Any:
    return np.asfortranarray(tensor.numpy())


def big_endian(tensor: Tensor) -> Any:
    values = tensor.numpy()
    return values.astype(values.dtype.newbyteorder(">"))


@pytest.mark.parametrize("convert", [lambda tensor: tensor, lambda tensor: tensor.tolist(), fortran, big_endian])
def test_lists_of_crystals(tmp_path: Path, convert: Callable[[Tensor], Any]) -> None:
    """Tensors, plain lists and NumPy arrays; the arrays are single precision as the tensors are."""
    check(save(tmp_path / "a.pt", crystals(0, convert)), 1)
    check(save(tmp_path / "b.pt", [crystals(0, convert), crystals(1, convert)]), 2)
    (only,) = read_samples(save(tmp_path / "c.pt", crystals(0, convert)[0]))
    assert only.structure is not None
    assert len(only.structure) == 2


def test_the_older_format_of_torch(tmp_path: Path) -> None:
    content = {"eval_setting": argparse.Namespace(a=1), **batch()}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    check(tmp_path / "x.pt", 1)


def spoil(name: str, index: tuple[int, ...], value: float) -> dict[str, Tensor]:
    content = batch()
    content[name] = content[name].clone().to(torch.float64 if math.isnan(value) else content[name].dtype)
    content[name][index] = value
    return content


@pytest.mark.parametrize(
    ("name", "index", "value", "reason"),
    [
        ("frac_coords", (2, 0), math.nan, "coordinates hold a number that is not finite"),
        ("lengths", (1, 0), math.nan, "cell holds a number that is not finite"),
        ("lengths", (1, 0), math.inf, "cell holds a number that is not finite"),
        ("lengths", (1, 0), -3.0, "length not positive"),
        ("lengths", (1, 0), 0.0, "length not positive"),
        ("angles", (1, 2), 180.0, "angle lies outside"),
        ("angles", (1, 0), 5.0, ""),
        ("angles", (1, 0), 178.0, ""),
        ("atom_types", (2,), 0, "no element has the atomic number 0"),
        ("atom_types", (2,), 119, "no element has the atomic number 119"),
        ("atom_types", (2,), -1, "no element has the atomic number -1"),
        ("atom_types", (2,), math.nan, "no element has the atomic number -1"),
    ],
)
def test_bad_crystals_fail_alone(tmp_path: Path, name: str, index: tuple[int, ...], value: float, reason: str) -> None:
    found = read_samples(save(tmp_path / "x.pt", spoil(name, index, value)))
    assert [bool(structural_validity(c.structure)) for c in (found[0], found[2])] == [False, False]
    if reason:
        assert found[1].structure is None
        assert reason in found[1].reason


def test_rare_elements_are_elements(tmp_path: Path) -> None:
    (_, found, _) = read_samples(save(tmp_path / "x.pt", spoil("atom_types", (2,), 101)))
    assert found.structure is not None
    assert found.structure.formula == "Md1"


def test_crystals_without_atoms(tmp_path: Path) -> None:
    content = batch()
    content["num_atoms"] = torch.tensor([0, 3, 3])
    found = read_samples(save(tmp_path / "x.pt", content))
    assert [(c.structure is None, c.reason) for c in found] == [
        (True, "there are no atoms"),
        (False, ""),
        (False, ""),
    ]
    nothing = {"frac_coords": torch.zeros(0, 3), "atom_types": torch.zeros(0), "num_atoms": torch.tensor([0, 0])}
    content = {**nothing, "lengths": torch.ones(2, 3), "angles": torch.full((2, 3), 90.0)}
    assert [c.reason for c in read_samples(save(tmp_path / "y.pt", content))] == ["there are no atoms"] * 2


def test_many_crystals_keep_their_order(tmp_path: Path) -> None:
    """More crystals than are built at a time, some of them empty."""
    count = 600
    sizes = torch.tensor([(row % 3) for row in range(count)])
    total = int(sizes.sum())
    content = {
        "frac_coords": torch.rand(total, 3),
        "atom_types": torch.arange(count).repeat_interleave(sizes) % 100 + 1,
        "num_atoms": sizes,
        "lengths": (torch.arange(1.0, count + 1) / 2).unsqueeze(1).expand(-1, 3),
        "angles": torch.full((count, 3), 90.0),
    }
    for row, c in enumerate(read_samples(save(tmp_path / "x.pt", content))):
        assert (c.target, c.structure is None) == (row, row % 3 == 0)
        if c.structure is not None:
            assert (c.structure.lattice.a, c.structure[0].specie.Z) == ((row + 1) / 2, row % 100 + 1)


def test_batches_of_one_crystal_say_their_rows_or_ids(tmp_path: Path) -> None:
    ones = [{**crystal, "num_atoms": torch.tensor([len(crystal["atom_types"])])} for crystal in crystals()]
    ones = [{**one, "lengths": one["lengths"].reshape(1, 3), "angles": one["angles"].reshape(1, 3)} for one in ones]
    order = (2, 0, 1)
    for form in (int, torch.tensor, lambda row: torch.tensor([row])):
        file = read_file(save(tmp_path / "x.pt", [{**ones[row], "sample_idx": form(row)} for row in order]))
        assert file.labelled
        assert [candidate.target for candidate in file.candidates] == list(order)
    named = read_file(save(tmp_path / "x.pt", [{**ones[row], "material_id": f"mp-{row}"} for row in order]))
    assert named.names == ("mp-2", "mp-0", "mp-1")
    assert read_file(save(tmp_path / "x.pt", {**batch(), "material_id": list("abc")})).names == ("a", "b", "c")


def without(*names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch().items() if name not in names}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "it lacks 'frac_coords'"),
        ([], "it holds no crystals"),
        (torch.zeros(3), "it holds no crystals"),
        ([1, 2], "a list of something else than crystals"),
        ([[]], "a list of something else than crystals"),
        ([batch(), stacked(2)], "different numbers of evaluations"),
        (without("angles"), r"it lacks 'angles' \(found: atom_types, frac_coords, lengths, num_atoms\)"),
        ({**batch(), "num_atoms": torch.tensor([2, 2, 3])}, "num_atoms counts 7 atoms in 3 crystals, but there are 6"),
        ({**batch(), "num_atoms": torch.tensor([-1, 4, 3])}, "num_atoms counts 6 atoms"),
        ({**batch(), "num_atoms": torch.tensor([2, 4])}, "in 2 crystals, but .* and 3 cells"),
        ({**batch(), "num_atoms": torch.tensor([1.5, 1.5, 3])}, "'num_atoms' holds numbers that are not whole"),
        ({**batch(), "atom_types": torch.rand(6, 100)}, "'atom_types' is no list of atomic numbers; .*one-hot"),
        ({**batch(), "atom_types": torch.rand(6)}, "not whole; take the atomic numbers"),
        ({**batch(), "atom_types": ["Na"] * 6}, "x.pt: "),
        ({**batch(), "frac_coords": torch.rand(6, 2)}, "three numbers for each atom"),
        ({**batch(), "frac_coords": "text"}, "'frac_coords' holds str and no tensor"),
        ({**batch(), "lengths": torch.rand(3, 3, dtype=torch.complex64)}, "no tensor"),
        ({**batch(), "angles": torch.full((3, 3), math.pi / 2)}, "as if they were radians; they must be degrees"),
        ({**stacked(2), "num_atoms": torch.tensor([SIZES])}, "disagree on the number of evaluations"),
        (Data(frac_coords=torch.rand(2, 3)), "it holds no crystals"),
        (tuple(batch().values()), "it holds no crystals; give a dict of the tensors"),
        ({**without("angles", "lengths"), "lattices": torch.rand(3, 3, 3)}, "save edges .* of its lattices"),
        ({**stacked(3), "num_atoms": torch.tensor(SIZES)}, "as in a trajectory; keep the last step: "),
        ({**batch(), "batch_indices": torch.tensor([0, 1, 0])}, "name a row twice.*; keep one of each"),
        ({**batch(), "batch_indices": torch.tensor([0, 1])}, "has not one number for each crystal"),
        ({**batch(), "batch_indices": torch.tensor([0, -1, 1])}, "holds no numbers of rows"),
        ([{**crystal, "sample_idx": np.int64(1)} for crystal in crystals()], "not read as the number of a row"),
        ([{**crystals()[0], "sample_idx": 1}, crystals()[1]], "only some of its crystals say"),
        ({**batch(), "frac_coords": torch.zeros(1, 1).expand(10**12, 3)}, "fewer numbers than its shape says"),
        ({**batch(), "num_atoms": np.array(["a"])}, "x.pt: "),
    ],
)
def test_broken_contents_are_one_sentence(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(KldmError, match=message) as caught:
        read_samples(save(tmp_path / "x.pt", content))
    assert str(caught.value).startswith(str(tmp_path / "x.pt"))
    assert "\n" not in str(caught.value)


def test_broken_files_are_one_sentence(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", batch())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(KldmError, match=r"not a file of torch.save, or a damaged one"):
        read_samples(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.cif", "no tensors")
    with pytest.raises(KldmError, match=r"not a file of torch.save, or a damaged one"):
        read_samples(path)


class Attack:
    """Creates a file if a pickle of it is loaded without care."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("writer", ["torch", "older torch", "pickle 2", "pickle 4"])
@pytest.mark.parametrize("how", ["os.system", "exec", "eval", "pathlib", "getattr"])
def test_no_code_is_run(tmp_path: Path, writer: str, how: str) -> None:
    import os

    mark, path = tmp_path / "attacked", tmp_path / "x.pt"
    attack = {
        "os.system": Attack(os.system, f"touch {mark}"),
        "exec": Attack(exec, f"open({str(mark)!r}, 'w')"),
        "eval": Attack(eval, f"open({str(mark)!r}, 'w')"),
        "pathlib": Attack(Path.touch, mark),
        "getattr": Attack(getattr, mark, "touch"),
    }[how]
    content = {**batch(), "eval_setting": argparse.Namespace(a=attack)}
    if writer.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(writer[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(KldmError) as caught:
        read_samples(path)
    assert not mark.exists()
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    if writer == "torch":
        name = {"os.system": r"posix.system", "exec": "exec", "eval": "eval"}.get(how, "getattr")
        assert f"{name}, which is not loaded because that might run code" in str(caught.value)
        assert "save the tensors alone" in str(caught.value)


def test_the_attack_is_one(tmp_path: Path) -> None:
    """The oracle: unpickled without care, it does create its file."""
    mark = tmp_path / "attacked"
    pickle.loads(pickle.dumps(Attack(exec, f"open({str(mark)!r}, 'w').close()")))
    assert mark.exists()
