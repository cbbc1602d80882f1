"""Runs that meet each other, damaged or exchanged files, and losses that are not finite."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kldm.errors import KldmError
from kldm.recipe import read_recipe
from kldm.runs import run as runs
from kldm.runtime.locking import LOCK, writing_to
from kldm.training import checkpoint as checkpoints
from kldm.training.checkpoint import Checkpoint
from tests.small import QUICK, RECIPES, kldm, options, refused, rows

QUICKSTART = RECIPES / "quickstart.cfg"
run = partial(runs.run, QUICKSTART, device=torch.device("cpu"), evaluate=False)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_two_writers_of_one_folder(copied: Path, tmp_path: Path) -> None:
    told = f"another process is writing to {copied}; "
    with writing_to(copied):
        assert refused("run", QUICKSTART, "--out", copied, "--device", "cpu", *options(QUICK)).startswith(told)
    with writing_to(tmp_path / "out"):
        told = f"another process is writing to {tmp_path / 'out'}"
        given = copied / "samples" / "train"
        for command in (("sample", copied, "--formula", "NaCl", "--device", "cpu"), ("evaluate", given)):
            assert refused(*command, "--out", tmp_path / "out").startswith(told)


def test_samples_replace_no_file(copied: Path) -> None:
    before = (copied / "report.json").read_bytes()
    told = refused("sample", copied, "--formula", "NaCl", "--device", "cpu", "--out", copied)
    assert told.startswith(
        f"{copied}: the folder has a file report.json already, which is not replaced; choose another"
    )
    assert (copied / "report.json").read_bytes() == before


def test_a_run_that_was_killed_before_its_first_recipe_starts(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    (tmp_path / ".tmp-0123456789ab-recipe.cfg").write_text("[da")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(KldmError, match="neither an empty folder nor a run"):
        run(tmp_path, overrides=QUICK)
    (tmp_path / "checkpoints").rmdir()
    run(tmp_path, overrides={**QUICK, "training.epochs": 1})
    assert not list(tmp_path.rglob(".tmp-*"))


def test_exchanged_checkpoints_are_called_what_they_are(copied: Path) -> None:
    best, last = (copied / "checkpoints" / f"{name}.safetensors" for name in ("best", "last"))
    state = last.read_bytes()
    shutil.copy(best, last)
    with pytest.raises(KldmError, match=r"last.safetensors: it holds weights alone, as best.safetensors does"):
        run(copied, overrides={**QUICK, "training.epochs": 3})
    last.write_bytes(state)
    shutil.copy(last, best)
    with pytest.raises(KldmError, match=r"best.safetensors: it holds a state of training, as last.safetensors does"):
        run(copied, overrides=QUICK)
    record = checkpoints.load(last)
    other = {**record.recipe, "training": {**record.recipe["training"], "batch_size": 3}}
    checkpoints.save(last, Checkpoint(other, record.tensors, record.state))
    with pytest.raises(KldmError, match=r"last.safetensors: it is of another run \(training.batch_size differs\)"):
        run(copied, overrides=QUICK)
    counters = {name: value for name, value in record.state.items() if name != "best"}
    checkpoints.save(last, Checkpoint(record.recipe, record.tensors, counters))
    best.unlink()
    with pytest.raises(KldmError, match=r"last.safetensors: its counters cannot be read"):
        run(copied, overrides={**QUICK, "training.epochs": 3})


def test_a_diverged_run_goes_on_with_a_lower_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its remedy is taken from the message, and the report says from which step on."""
    from kldm.training.gradients import Gradients

    add = Gradients.add

    def diverging(self: Gradients, batch: Any) -> Any:
        losses = add(self, batch)
        if calls.append(1) or len(calls) <= 2 or rate > 1e-4:  # type: ignore[func-returns-value]
            return losses if len(calls) <= 2 else {name: loss * torch.nan for name, loss in losses.items()}
        return losses

    calls: list[int] = []
    rate = 1e-3
    monkeypatch.setattr(Gradients, "add", diverging)
    settings = {**QUICK, "training.batch_size": 150, "training.checkpoint_every": 1, "training.epochs": 4}
    settings |= {"training.learning_rate": 1e-3}
    with pytest.raises(KldmError, match=r"not finite .*--training.learning_rate 0.0003 or .* goes on from step 2 on"):
        run(tmp_path / "run", overrides=settings)
    rate = 1e-5
    with pytest.raises(KldmError, match="batch_size differs"):
        run(tmp_path / "run", overrides={**settings, "training.batch_size": 10})
    report = run(tmp_path / "run", overrides={**settings, "training.learning_rate": rate})
    assert [row["epoch"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]
    assert report.about["training"]["changes"] == [{"step": 2, "learning_rate": [1e-3, rate]}]
    assert read_recipe(tmp_path / "run" / "recipe.cfg")["training"]["learning_rate"] == rate
    with pytest.raises(KldmError, match="training has ended with learning_rate = 1e-05, which cannot change any more"):
        run(tmp_path / "run", overrides=settings)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.AdamW.step

    def broken(self: torch.optim.AdamW, closure: None = None) -> None:
        step(self)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(torch.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    overrides = {**QUICK, "training.batch_size": 150, "training.epochs": 1}
    with pytest.raises(KldmError, match=r"training has diverged at step 1 .*training goes on from the start"):
        run(tmp_path / "run", overrides=overrides)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"model.coordinates.horizon": "Infinity"}, "model.coordinates.horizon: must be a finite number, got inf"),
        ({"model.lattice.schedule.beta_max": "1e9"}, "beta_max: must be above 0 and at most 1,000"),
        ({"metrics.csp.stol": "1e9"}, "metrics.csp.stol: must be above 0 and at most 10"),
        ({"metrics.csp.angle_tol": "1e-300"}, "metrics.csp.angle_tol: must be 0 or from 1e-15"),
        ({"training.learning_rate": "NaN"}, "training.learning_rate: must be a finite number, got nan"),
        ({"training.seed": str(2**64)}, "training.seed: must have at most 63 bits"),
        ({"training.learning_rate": "1" + "0" * 400}, "training.learning_rate: must have at most 63 bits"),
        ({"model.network.hidden": "100000"}, r"model.network: its parameters take more than the [\d,]+ GB of memory"),
        ({"model.network.hidden": "1000000000"}, "model.network.hidden: must be from 1 to 100,000"),
        ({"sampler.steps": str(10**12)}, "sampler.steps: must be"),
        ({"evaluation.candidates": str(10**9)}, "evaluation.candidates: must be from 1 to 100,000"),
        ({"validation.score": "accuracy"}, "validation.score: no metric gives 'accuracy'"),
        ({"data.name": "~nosuchuser/data"}, "~nosuchuser/data: the system knows no home of this user"),
    ],
)
def test_nonsense_is_refused_by_check(overrides: dict[str, str], told: str) -> None:
    keys = [part for key, value in overrides.items() for part in (f"--{key}", value)]
    message = refused("check", QUICKSTART, *keys)
    assert re.search(told, message), message


def test_an_empty_split_is_told_before_training(tmp_path: Path) -> None:
    from kldm.data.cache import save_store
    from kldm.data.parsing import Parsed
    from tests.small import random_store

    save_store(tmp_path / "few.safetensors", Parsed(random_store((2, 3, 2)), ()))
    data = {**QUICK, "data.name": str(tmp_path / "few.safetensors")}
    for command in ("check", "run"):
        rest = () if command == "check" else ("--out", tmp_path / "run", "--device", "cpu")
        assert "few.safetensors/test: the split is empty" in refused(command, QUICKSTART, *rest, *options(data))
    assert not (tmp_path / "run").exists()
    heavy = random_store((2, 3, 2))
    heavy.species[0] = 101
    save_store(tmp_path / "few.safetensors", Parsed(heavy, ()))
    assert "atomic number that is not from 1 to 100" in refused("check", QUICKSTART, *options(data))


def test_arguments_that_are_no_text() -> None:
    assert refused("check", "caf\udce9.cfg").startswith(r"caf\udce9.cfg: is not UTF-8 text")
    assert "n" * 300 in refused("check", "n" * 300 + ".cfg")
    result = kldm("check", "\x1b[31mred.cfg")
    assert "\x1b" not in result.output
    assert result.exit_code == 1


def test_a_process_without_home_and_name_has_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    from kldm.data import cache

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "KLDM_CACHE", "XDG_CACHE_HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache.folder().parent.parent == tmp_path
    assert kldm("components").exit_code == 0
    assert json.dumps(str(Path.home())).startswith(f'"{tmp_path}')
