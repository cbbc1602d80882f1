"""A finished run of the quickstart recipe, made tiny, that several tests look at."""

from pathlib import Path

import pytest

from tests.small import QUICK, RECIPES, kldm, options


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder; beside it ``output.txt`` holds what the command printed. Not to be written to."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    result = kldm("run", RECIPES / "quickstart.cfg", "--out", folder, "--device", "cpu", *options(QUICK))
    assert result.exit_code == 0, result.output
    (folder.parent / "output.txt").write_text(result.stdout)
    return folder
