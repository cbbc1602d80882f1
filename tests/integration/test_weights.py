"""The weights that the project ships: this code loads them, and they know their data."""

import math
from pathlib import Path

import pytest
import torch

from kldm.reading import read_samples
from kldm.recipe import read_recipe
from kldm.runs.experiment import assemble
from kldm.training import checkpoint
from tests.small import RECIPES, kldm

WEIGHTS = sorted((RECIPES.parent / "weights").glob("*/model.safetensors"))
PEROVSKITES = RECIPES.parent / "weights" / "perov5_small" / "model.safetensors"
NEW_PEROVSKITES = RECIPES.parent / "weights" / "perov5_dng_small" / "model.safetensors"


@pytest.mark.parametrize("file", WEIGHTS, ids=lambda file: file.parent.name)
def test_the_file_is_what_its_recipe_and_log_say(file: Path) -> None:
    record = checkpoint.load(file)
    assert set(record.tensors) == {f"model.{name}" for name in assemble(record.recipe)[0].model.state_dict()}
    assert {weight.dtype for weight in record.tensors.values()} == {torch.float16}
    assert file.stat().st_size < 40 * 2**20
    assert record.recipe == read_recipe(file.parent / "recipe.cfg")
    rows = (file.parent / "train.jsonl").read_text().splitlines()
    assert record.state["epoch"] <= len(rows) == record.recipe["training"]["epochs"]
    assert record.recipe["data"]["root"] is None, "no path of the machine that trained it"


def test_a_perovskite_is_predicted(tmp_path: Path) -> None:
    """Cubic SrTiO3 has a lattice parameter of 3.905 angstrom at room temperature; the functional of the data gives
    longer bonds."""
    arguments = ("--formula", "SrTiO3", "--count", "6", "--sampler.steps", "50", "--device", "cpu")
    assert kldm("sample", PEROVSKITES, *arguments, "--out", tmp_path).exit_code == 0
    lengths, near = [], []
    for made in read_samples(tmp_path / "samples.jsonl"):
        assert made.structure is not None
        distances = made.structure.distance_matrix
        near.append(distances[distances > 0].min())
        lengths.append(math.prod(made.structure.lattice.abc) ** (1 / 3))
        assert made.structure.lattice.angles == pytest.approx((90, 90, 90), abs=2)
    assert min(near) > 1.6
    assert min(lengths) == pytest.approx(3.97, abs=0.1)


def test_perovskites_are_generated(tmp_path: Path) -> None:
    """Cells of five atoms, nearly cubic, with edges as in Perov-5; of these elements most are ABO3."""
    arguments = ("--elements", "Ba,Sr,Ca,Ti,Zr,O", "--count", "12", "--sampler.steps", "50", "--device", "cpu")
    assert kldm("sample", NEW_PEROVSKITES, *arguments, "--out", tmp_path).exit_code == 0
    made = [
        candidate.structure for candidate in read_samples(tmp_path / "samples.jsonl") if candidate.structure is not None
    ]
    assert len(made) == 12
    assert {len(structure) for structure in made} == {5}
    assert {symbol for structure in made for symbol in structure.symbol_set} <= {"Ba", "Sr", "Ca", "Ti", "Zr", "O"}
    assert sum(structure.composition["O"] == 3 for structure in made) >= 8
    assert all(3.4 < structure.volume ** (1 / 3) < 5.2 for structure in made)
    assert all(abs(angle - 90) < 8 for structure in made for angle in structure.lattice.angles)
