"""The section [execution]: what it reaches, and that it changes nothing else."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from kldm.execution import Execution, set_execution
from kldm.networks import CSPVNet
from kldm.runs.trained import load_run
from kldm.samplers import graphs
from kldm.training.checkpoint import load
from tests.small import QUICK, RECIPES, kldm, losses, needs_gpu, options, refused

QUICKSTART = RECIPES / "quickstart.cfg"
CPU = ("--device", "cpu")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    set_execution(None, Execution())


def test_a_recipe_reaches_the_network(tmp_path: Path) -> None:
    chosen = options({**QUICK, "execution.messages": "autograd", "execution.deterministic": True})
    assert kldm("train", QUICKSTART, *CPU, "--out", tmp_path / "run", *chosen).exit_code == 0
    assert torch.are_deterministic_algorithms_enabled()
    network = load_run(tmp_path / "run")[0].model.network
    assert isinstance(network, CSPVNet)
    assert network.execution == Execution(messages="autograd", deterministic=True)


def test_a_model_is_loaded_without_the_compiler_of_torch() -> None:
    """Its import takes longer than to sample a few crystals."""
    program = """
import sys
from pathlib import Path
from kldm import load_run
load_run(Path("weights/perov5_small"))
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=RECIPES.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_same_losses_to_rounding_and_a_run_may_go_on_with_another_choice(tmp_path: Path) -> None:
    for messages in ("manual", "autograd"):
        chosen = options({**QUICK, "execution.messages": messages, "training.epochs": 1})
        assert kldm("train", QUICKSTART, *CPU, "--out", tmp_path / messages, *chosen).exit_code == 0
    for ours, theirs in zip(losses(tmp_path / "manual"), losses(tmp_path / "autograd"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    more = options({**QUICK, "execution.messages": "manual", "training.epochs": 2})
    assert kldm("train", QUICKSTART, *CPU, "--out", tmp_path / "autograd", *more).exit_code == 0
    assert len(losses(tmp_path / "autograd")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["quickstart.cfg", "quickstart_dng.cfg"])
def test_compiled_training_has_the_same_losses(tmp_path: Path, recipe: str) -> None:
    for name, compile_ in (("plain", False), ("compiled", True)):
        chosen = options({**QUICK, "execution.compile": compile_, "training.epochs": 1})
        assert kldm("train", RECIPES / recipe, *CPU, "--out", tmp_path / name, *chosen).exit_code == 0
    for ours, theirs in zip(losses(tmp_path / "compiled"), losses(tmp_path / "plain"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@needs_gpu
@pytest.mark.parametrize("recipe", ["quickstart.cfg", "quickstart_dng.cfg"])
def test_a_gpu_gives_the_same_bits_again(tmp_path: Path, recipe: str) -> None:
    """In processes of their own: what the matrix library is asked for counts before its first product."""
    command = (sys.executable, "-m", "kldm", "train", str(RECIPES / recipe), "--device", "cuda")
    chosen = options({**QUICK, "execution.deterministic": True})
    for name in ("once", "again"):
        subprocess.run((*command, "--out", str(tmp_path / name), *chosen), check=True)
    assert losses(tmp_path / "once") == losses(tmp_path / "again")
    once, again = (load(tmp_path / name / "checkpoints" / "last.safetensors").tensors for name in ("once", "again"))
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_a_network_without_a_choice_is_left_alone() -> None:
    network = nn.Linear(2, 2)
    set_execution(network, Execution(messages="autograd", compile=True))
    assert not hasattr(network, "execution")
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_unknown_way_is_refused() -> None:
    message = refused("check", QUICKSTART, "--execution.messages", "fast")
    assert message.startswith("execution.messages: ")
    assert "manual" in message
    message = refused("check", QUICKSTART, "--execution.grphs", "true")
    assert message == "execution.grphs: unknown key; did you mean 'graphs'?"


def test_graphs_are_asked_for_where_the_model_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder as on a GPU, which refuses: one warning per command, and the samples of plain steps."""
    asked: list[str] = []

    def refuse(run: object, rng: torch.Generator) -> Callable[[], None]:
        asked.append("record")
        raise RuntimeError("not here")

    monkeypatch.setattr(graphs, "recorder", lambda device: refuse)
    chosen = options({**QUICK, "evaluation.untrained": False})
    assert kldm("run", QUICKSTART, *CPU, "--out", tmp_path / "plain", *chosen).exit_code == 0
    assert not asked
    replayed = (*chosen, "--execution.graphs", "true")
    assert kldm("run", QUICKSTART, *CPU, "--out", tmp_path / "graphs", *replayed).exit_code == 0
    assert asked == ["record"]
    samples = [(tmp_path / name / "samples" / "test" / "samples.jsonl").read_bytes() for name in ("plain", "graphs")]
    assert samples[0] == samples[1]
    assert kldm("sample", tmp_path / "graphs", "--formula", "NaCl", *CPU).exit_code == 0
    assert asked == ["record", "record"]
    assert kldm("sample", tmp_path / "graphs", "--formula", "NaCl", *CPU, "--no-graphs").exit_code == 0
    assert asked == ["record", "record"]
    assert kldm("sample", tmp_path / "plain", "--formula", "NaCl", *CPU, "--graphs").exit_code == 0
    assert asked == ["record", "record", "record"]
