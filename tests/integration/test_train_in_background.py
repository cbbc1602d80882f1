"""The script for long training on a workstation, with the quickstart made tiny."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kldm.training import checkpoint as checkpoints
from tests.small import QUICK, RECIPES, kldm, options, rows

SCRIPT = RECIPES / "train_in_background.sh"
TINY = [
    *options({**QUICK, "training.checkpoint_every": 1000, "training.epochs": 1000}),
    *options({"training.learning_rate_schedule.@learning_rates": "warmup_stable_decay.v1"}),
    *options({"training.learning_rate_schedule.decay": 0.0, "training.learning_rate_schedule.warmup_steps": 5}),
    *("--device", "cpu"),
]
STEPS = 3
"""Of an epoch."""


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["sh", SCRIPT, *arguments],
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_training(process: subprocess.Popen[str], folder: Path, epochs: int) -> None:
    """Wait for so many epochs to be in the log."""
    while not (folder / "train.jsonl").exists() or len(rows(folder)) < epochs:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_it_says_how_it_is_used() -> None:
    few: list[tuple[str, ...]] = [
        (),
        ("train", "recipe.cfg"),
        ("release", "recipe.cfg", "runs/trunk", "runs/branch", "5"),
    ]
    for arguments in few:
        process = start(*arguments)
        _, told = process.communicate(timeout=30)
        assert process.returncode == 2
        assert "train_in_background.sh train RECIPE FOLDER THREADS" in told
        assert "set -eu" not in told


@pytest.mark.slow
def test_it_trains_stops_goes_on_and_releases(tmp_path: Path) -> None:
    """Stopped in the midst of an epoch it leaves a checkpoint of that step, long before the next that is due."""
    trunk, branch, recipe = tmp_path / "trunk", tmp_path / "branch", RECIPES / "quickstart.cfg"
    last = trunk / "checkpoints" / "last.safetensors"
    steps: list[int] = []
    for epochs in (2, 20):
        process = start("train", recipe, trunk, "1", *TINY)
        until_training(process, trunk, epochs)
        pid = int((tmp_path / "trunk.pid").read_text())
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19
        second = start("train", recipe, trunk, "1", *TINY)
        _, told = second.communicate(timeout=30)
        assert (second.returncode, f"process {pid} trains {trunk} already" in told) == (1, True)
        os.kill(pid, signal.SIGTERM)
        signalled = time.monotonic()
        _, told = process.communicate(timeout=30)
        assert time.monotonic() - signalled < 10
        assert process.returncode == 1
        assert not (tmp_path / "trunk.pid").exists()
        assert "a checkpoint was written; run the same command again" in " ".join(told.split())
        steps.append(checkpoints.load(last).state["step"])
    assert 2 * STEPS <= steps[0] < 20 * STEPS <= steps[1]
    found = [row["step"] for row in rows(trunk)]
    assert found == [STEPS * epoch for epoch in range(1, len(found) + 1)]  # none twice

    arguments: list[str | Path] = ["release", recipe, trunk, branch, "60", "1", *TINY]
    process = start(*arguments)
    until_training(process, branch, 2)
    process.terminate()
    _, told = process.communicate(timeout=30)
    assert process.returncode == 1, told
    assert "run the same command again" in told
    assert not (tmp_path / "branch.safetensors").exists()
    process = start(*arguments)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    rates = [row["learning_rate"] for row in rows(branch)]
    assert len(rates) == 60
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01 * rates[0]
    released = checkpoints.load(tmp_path / "branch.safetensors")
    assert released.state["epoch"] == 60
    assert released.state["averaged"] >= steps[1] - STEPS + 60 * STEPS  # the trunk's average went on
    result = kldm("sample", tmp_path / "branch.safetensors", "--formula", "NaCl", "--out", tmp_path / "samples")
    assert result.exit_code == 0, result.output
