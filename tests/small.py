"""Models, data and recipes small enough for tests."""

import csv
import gzip
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from kldm.cli import main
from kldm.crystals import CrystalStore
from kldm.interfaces import DiffusionProcess
from kldm.model import JointModel
from kldm.networks import CSPVNet
from kldm.processes import Given, LogTan, Property, TrivializedTorus, VPEuclidean
from tests.oracles import random_crystals

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

RECIPES = Path(__file__).parent.parent / "recipes"
NETWORK: dict[str, Any] = {"hidden": 8, "layers": 1, "frequencies": 4, "time_features": 8}
OVERRIDES: dict[str, Any] = {f"model.network.{name}": value for name, value in NETWORK.items()}
QUICK: dict[str, Any] = {
    **OVERRIDES,
    "training.epochs": 2,
    "training.ema_start": 1,
    "sampler.steps": 3,
    "evaluation.limit": 5,
}

BRIEF: dict[str, Any] = {
    "model.network.hidden": 8,
    "model.network.layers": 1,
    "training.epochs": 2,
    "training.validate_every": 2,
    "validation.size": 3,
    "validation.sampler.steps": 2,
    "sampler.steps": 2,
    "evaluation.limit": 3,
}
"""A recipe for a GPU and days, with validation, in a second."""


def small_model(seed: int = 0, hidden: int = 8, layers: int = 1) -> JointModel:
    """KLDM-x0 for crystal structure prediction with a tiny network."""
    torch.manual_seed(seed)
    return JointModel(
        coordinates=TrivializedTorus(),
        lattice=VPEuclidean(codec=LogTan(standardise=False), parameterization="x0"),
        species=Given(),
        network=partial(CSPVNet, hidden=hidden, layers=layers, frequencies=4, time_features=8),
    )


def small_dng_model(species: DiffusionProcess | None = None, seed: int = 0) -> JointModel:
    """KLDM-x0 for de-novo generation with a tiny network; absorbing species by default."""
    from kldm.processes.absorbing import Absorbing

    torch.manual_seed(seed)
    return JointModel(
        coordinates=TrivializedTorus(),
        lattice=VPEuclidean(codec=LogTan(standardise=False), parameterization="x0"),
        species=species or Absorbing(),
        network=partial(CSPVNet, **NETWORK),
    )


def small_conditional_model() -> JointModel:
    """The model of ``small_model``, conditioned on the column ``energy``."""
    torch.manual_seed(0)
    return JointModel(
        coordinates=TrivializedTorus(),
        lattice=VPEuclidean(codec=LogTan(standardise=False), parameterization="x0"),
        species=Given(),
        conditions={"formation": Property(column="energy", fit={"mean": -0.5, "std": 2.0})},
        network=partial(CSPVNet, **NETWORK),
    )


def random_store(sizes: tuple[int, ...], seed: int = 0) -> CrystalStore:
    """Random crystals as a data set."""
    return CrystalStore.of(random_crystals(sizes, seed, torch.float32), [f"random-{n}" for n in range(len(sizes))])


def real(name: str, count: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first rows of the published splits of a data set, as a folder."""
    if not os.environ.get("KLDM_DATA"):
        pytest.skip("KLDM_DATA is not set")
    monkeypatch.setenv("KLDM_CACHE", str(folder / "cache"))
    place = folder / name
    place.mkdir()
    for split in ("train", "val", "test"):
        source = Path(os.environ["KLDM_DATA"]) / name / f"{split}.csv.gz"
        if not source.exists():
            pytest.skip(f"{source} is not there")
        with gzip.open(source, "rt", newline="") as full, (place / f"{split}.csv").open("w", newline="") as part:
            reader, writer = csv.reader(full), csv.writer(part)
            for _ in range(count + 1):
                writer.writerow(next(reader))
    return place


def rows(folder: Path) -> list[dict[str, Any]]:
    """The training log of a run folder."""
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[dict[str, float]]:
    """Everything in a training log but durations."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(folder)]


def options(overrides: dict[str, Any]) -> list[str]:
    """Overrides as the command line takes them."""
    return [part for key, value in overrides.items() for part in (f"--{key}", json.dumps(value))]


def kldm(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> str:
    """Run a command that must fail as a user's mistake does: status 1, one sentence, no traceback."""
    result = kldm(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    (message,) = (line for line in result.output.splitlines() if line.startswith("Error: "))
    return message.removeprefix("Error: ")
