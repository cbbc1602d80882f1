"""The recipes of the other methods run from data to report on real rows, with small overrides."""

import json
from pathlib import Path

import pytest

from tests.small import BRIEF, RECIPES, kldm, options, real

METHODS = (
    "diffcsp_mp20",
    "diffcsp_mp20_dng",
    "equicsp_mp20",
    "equicsp_mp20_dng",
    "flowmm_mp20",
    "flowmm_mp20_dng",
    "ablations/tdm_velocity_variance_0.5_mp20",
)


@pytest.mark.parametrize("recipe", METHODS)
def test_trains_validates_samples_and_judges(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = {
        "data.name": str(real("mp_20", 30, tmp_path, monkeypatch)),
        **BRIEF,
        **({"evaluation.count": 4} if recipe.endswith("_dng") else {"evaluation.candidates": 2}),
    }
    arguments: tuple[str | Path, ...] = (
        RECIPES / f"{recipe}.cfg",
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        *options(overrides),
    )
    result = kldm("run", *arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "run" / "report.json").read_text())["evaluation"]["test"]
    if recipe.endswith("_dng"):
        assert found["requests"] == 4
        assert 0 <= found["metrics"]["dng"]["values"]["struct_valid"] <= 1
    else:
        assert found["requests"] == 6
        assert {"full.match_rate@1", "full.match_rate@2"} <= set(found["metrics"]["csp"]["values"])
    assert kldm("run", *arguments).exit_code == 0  # nothing is left to do, and nothing is refused
