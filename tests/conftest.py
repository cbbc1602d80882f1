"""Finished runs of the quickstart recipes, made tiny, that several tests look at."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import pytest

from tests.small import QUICK, RECIPES, kldm, options


@pytest.fixture
def in_this_process() -> Iterator[None]:
    """Work with a time limit is done in this process, where tests have replaced functions."""
    with joblib.parallel_config(backend="threading", n_jobs=1):
        yield


@pytest.fixture(scope="session")
def finished_dng(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the quickstart for de-novo generation, made tiny. Not to be written to."""
    folder = tmp_path_factory.mktemp("finished_dng") / "run"
    few: dict[str, Any] = {**QUICK, "evaluation.count": 5, "metrics.dng.coverage": False}
    result = kldm("run", RECIPES / "quickstart_dng.cfg", "--out", folder, "--device", "cpu", *options(few))
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder; beside it ``output.txt`` holds what the command printed. Not to be written to."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    result = kldm("run", RECIPES / "quickstart.cfg", "--out", folder, "--device", "cpu", *options(QUICK))
    assert result.exit_code == 0, result.output
    (folder.parent / "output.txt").write_text(result.stdout)
    return folder
