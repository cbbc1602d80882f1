"""Two processes on the command line: what one gives they give, and a run that one of them ended goes on."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from kldm.data import Data
from kldm.errors import KldmError
from kldm.runtime import distributed
from kldm.runtime.distributed import Lost, World, _own, joined, world
from kldm.training import checkpoint as checkpoints
from tests import worlds
from tests.mortal import MORTAL
from tests.small import kldm, losses, rows
from tests.worlds import Threaded

CPU = torch.device("cpu")

COMMANDS = """\
import json
import sys

from kldm.cli import main

for command in json.loads(sys.argv[1]):
    main(command, standalone_mode=False)
"""

RECIPE = """\
[data]
name = "aflow_prototypes"
max_atoms = {atoms}

[model.coordinates]
@processes = "trivialized_torus.v1"

[model.lattice]
@processes = "vp_euclidean.v1"

[model.lattice.codec]
@codecs = "log_tan.v1"

[model.species]
@processes = "{species}"

[model.network]
@networks = "{network}"
hidden = 8

[training]
epochs = {epochs}
learning_rate = {rate}
batch_size = {batch}
ema_start = 2
validate_every = {validate}
checkpoint_every = {checkpoint}

[training.plateau]
patience = 0
minimum = 0.0

[sampler]
@samplers = "euler_maruyama.v1"
steps = 2

[validation]
size = 3

[validation.sampler]
@samplers = "euler_maruyama.v1"
steps = 2

[evaluation]
limit = 4
candidates = 2
max_pairs = 30

[metrics.csp]
@metrics = "match_rate.v1"
rules = ["structural"]
"""

SELECT = ("--select", "consensus")

ATOMS = 8
STEPS = 4
"""Per epoch: three of a third of all crystals but one, and one of one crystal, less than there are processes."""


def batch_size() -> int:
    count = len(Data(name="aflow_prototypes", max_atoms=ATOMS).load("train"))
    assert count % 3 == 1
    return count // 3


@attrs.frozen
class Place:
    """A folder with recipes, and torchrun in it."""

    folder: Path

    @classmethod
    def of(cls, folder: Path) -> "Place":
        (folder / "commands.py").write_text(COMMANDS)
        (folder / "mortal.py").write_text(MORTAL)
        usual: dict[str, Any] = {"atoms": ATOMS, "batch": batch_size(), "epochs": 4, "validate": 0, "rate": 0.001}
        usual["checkpoint"] = 100
        recipes: dict[str, dict[str, Any]] = {
            "csp": {"species": "given.v1", "network": "cspvnet.v1", "validate": 2},
            "dng": {"species": "absorbing.v1", "network": "cspvnet.v1"},
            "mortal": {"species": "given.v1", "network": "mortal.v1", "epochs": 6, "checkpoint": 2},
        }
        for name, changes in recipes.items():
            (folder / f"{name}.cfg").write_text(RECIPE.format(**usual | changes))
        return cls(folder)

    def arguments(self, recipe: str, out: str) -> list[str]:
        mine = ["--code", str(self.folder / "mortal.py")] if recipe == "mortal" else []
        command = "run" if recipe == "csp" else "train"
        recipe = str(self.folder / f"{recipe}.cfg")
        return [command, recipe, *mine, "--out", str(self.folder / out), "--device", "cpu"]

    def torchrun(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def checkpoint(self, out: str) -> checkpoints.Checkpoint:
        return checkpoints.load(self.folder / out / "checkpoints" / "last.safetensors")


@attrs.frozen
class Ended:
    """How a run came to its end, and the step that its checkpoint was of then."""

    status: int
    errors: list[str]
    step: int


ENDINGS = {"killed": {"KILLED": "1@11"}, "writer_killed": {"KILLED": "0@11"}, "signalled": {"SIGNALLED": "0@4"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.of(tmp_path_factory.mktemp("distributed"))


@pytest.fixture(scope="module")
def ended(place: Place) -> dict[str, Ended]:
    """Runs that ended before their time, all at once."""
    started = {
        out: place.torchrun("-m", "kldm", *place.arguments("mortal", out), **how) for out, how in ENDINGS.items()
    }
    found = {}
    for out, process in started.items():
        _, told = process.communicate(timeout=120)
        errors = [line for line in told.splitlines() if line.startswith("Error: ")]
        found[out] = Ended(process.returncode, errors, place.checkpoint(out).state["step"])
    return found


@pytest.fixture(scope="module")
def together(place: Place, ended: dict[str, Ended], finished: Path) -> list[str]:
    """All that two processes do and go on with, in one start; returns what they printed."""
    samples = str(place.folder / "together" / "samples")
    commands = [
        ["sample", str(finished), "--limit", "7", "--count", "2", *SELECT, "--out", samples, "--device", "cpu"],
        ["evaluate", samples, "--reference", "aflow_prototypes/test", "--metric.rules", '["structural"]'],
        [*place.arguments("csp", "together/csp"), "--training.max_pairs", "300"],
        place.arguments("dng", "together/dng"),
        *(place.arguments("mortal", out) for out in ("whole", *ENDINGS)),
    ]
    process = place.torchrun(str(place.folder / "commands.py"), json.dumps(commands))
    printed, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    return printed.splitlines()


@pytest.mark.parametrize("recipe", ["csp", "dng"])
def test_two_processes_give_the_losses_of_one(place: Place, together: list[str], recipe: str) -> None:
    """With steps of a single crystal, pieces, an average, validation and a falling learning rate."""
    result = kldm(*place.arguments(recipe, f"one/{recipe}"))
    assert result.exit_code == 0, result.output
    single, both = (losses(place.folder / where / recipe) for where in ("one", "together"))
    assert [row["step"] for row in single] == [STEPS * epoch for epoch in range(1, 5)]
    assert len(both) == len(single)
    for left, right in zip(single, both, strict=True):
        assert right == pytest.approx(left, rel=1e-5)
    assert single != both  # or they would not have been two
    assert len({row["learning_rate"] for row in single}) > 1
    assert ("validation" in single[1]) == (recipe == "csp")
    for name in ("model", "average", "optimizer"):
        first, second = (place.checkpoint(f"{where}/{recipe}").part(name) for where in ("one", "together"))
        assert set(first) == set(second)
        for key in first if name != "optimizer" else ():
            torch.testing.assert_close(second[key], first[key], rtol=1e-3, atol=1e-4)


def test_they_write_and_print_once(place: Place, together: list[str]) -> None:
    outs = ("together/csp", "together/dng", "whole", *ENDINGS)
    assert [line for line in together if line.startswith("run folder")] == [
        f"run folder: {place.folder / out}" for out in outs
    ]
    report = json.loads((place.folder / "together" / "csp" / "report.json").read_text())
    assert report["processes"] == 2
    assert report["evaluation"]["test"]["requests"] == 8
    recipe = (place.folder / "together" / "csp" / "recipe.cfg").read_text()
    assert "max_pairs = 300" in recipe


def test_their_samples_and_judgements_are_those_of_one(place: Place, together: list[str], finished: Path) -> None:
    alone, both = place.folder / "one" / "samples", place.folder / "together" / "samples"
    arguments = ("--limit", "7", "--count", "2", *SELECT, "--out", alone, "--device", "cpu")
    assert kldm("sample", finished, *arguments).exit_code == 0
    result = kldm("evaluate", alone, "--reference", "aflow_prototypes/test", "--metric.rules", '["structural"]')
    assert result.exit_code == 0, result.output
    results = (f"evaluation-1/{name}" for name in ("results.csv", "results.jsonl"))
    for name in ("samples.jsonl", "samples.extxyz", "structures.zip", *results):
        first, second = ((folder / name).read_bytes().replace(bytes(folder), b"") for folder in (alone, both))
        assert first == second, name
    single, shared = (
        json.loads((folder / "evaluation-1" / "report.json").read_text().replace(str(folder), ""))
        for folder in (alone, both)
    )
    assert single["evaluation"] == shared["evaluation"]


@pytest.mark.parametrize("out", ENDINGS)
def test_a_run_that_one_process_ended_goes_on_from_its_last_checkpoint(
    place: Place, ended: dict[str, Ended], together: list[str], out: str
) -> None:
    """Bitwise as two processes that nothing happened to."""
    end, total = ended[out], 6 * STEPS
    assert end.status != 0
    if out == "signalled":
        (message,) = end.errors
        assert f"interrupted at step {end.step} of {total}; a checkpoint was written" in message
        assert 0 < end.step < total
    else:  # of the survivors the writer alone has something to say
        told = "Error: a process of the run was lost; run the same command again to resume"
        assert end.errors == ([told] if out == "killed" else [])
        assert end.step == 2 * STEPS
    assert losses(place.folder / out) == losses(place.folder / "whole")
    assert [row["epoch"] for row in rows(place.folder / out)] == [1, 2, 3, 4, 5, 6]
    resumed, whole = place.checkpoint(out), place.checkpoint("whole")
    assert set(resumed.tensors) == set(whole.tensors)
    assert all(torch.equal(value, whole.tensors[name]) for name, value in resumed.tensors.items())


def test_without_torchrun_there_is_one_process_and_no_group() -> None:
    with joined(CPU) as device:
        assert device == CPU
        assert (world().rank, world().size, world().is_writer) == (0, 1, True)
        assert world().gather("mine") == ["mine"]
        assert world().by_writer(lambda: 3) == 3
        with world().writer_first():
            assert not torch.distributed.is_initialized()


def test_what_the_writer_alone_does_is_everyones_and_its_failure_ends_all() -> None:
    done: list[int] = []

    def work(here: World) -> str:
        def once() -> str:
            done.append(here.rank)
            return "found"

        return here.by_writer(once)

    assert worlds.together(3, work) == ["found"] * 3
    assert done == [0]

    def failing(here: Threaded) -> type[Exception] | None:
        try:
            with here.writer_first():
                if here.is_writer:
                    raise KldmError("a mistake")
        except KldmError as error:
            if here.is_writer:
                here.die()
            return type(error)
        return None

    assert worlds.together(3, failing) == [KldmError, Lost, Lost]


def test_processes_that_cannot_be_connected_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> Iterator[Any]:
        raise torch.distributed.DistNetworkError("failed to connect to nowhere:1")

    for name in distributed._ENVIRONMENT:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(distributed, "rendezvous", unreachable)
    with pytest.raises(KldmError, match=r"cannot be connected \(failed to connect to nowhere:1\)"), joined(CPU):
        pass


@pytest.mark.parametrize(
    ("device", "gpus", "told"),
    [
        ("cuda:1", 2, r"--device cuda:1: every process takes a GPU of its own; say cuda or cpu"),
        ("cuda", 1, r"torchrun started 2 processes on a machine with 1 GPUs; say --nproc-per-node 1 or --device cpu"),
        ("cuda", 0, r"torchrun started 2 processes on a machine with 0 GPUs; say --device cpu"),
    ],
)
def test_gpus_that_do_not_go_round(device: str, gpus: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(KldmError, match=told):
        _own(torch.device(device), 0, 2)


def test_every_process_gets_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [_own(torch.device("cuda"), local, 2) for local in (0, 1)] == [torch.device("cuda", n) for n in (0, 1)]
    assert _own(CPU, 1, 2) == CPU
