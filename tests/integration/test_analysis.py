"""The analysis of the Frechet mean: its geometry, its noise, and what it finds in the limits."""

import json
from math import pi, sqrt
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analysis import frechet_mean as analysis
from analysis.frechet_mean import TURN, analyse, crystals_on_a_circle, frechet_mean, kernel_time, shifts
from kldm.torus import wrap


def spread(place: Tensor, angles: Tensor) -> Tensor:
    """Sum of squared arcs from each place [m] to the angles [n]."""
    return wrap(place.unsqueeze(-1) - angles).square().sum(-1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=12))
@settings(deadline=None)
def test_no_point_of_a_grid_beats_the_frechet_mean(values: list[float]) -> None:
    angles = torch.tensor(values, dtype=torch.float64)
    mean = frechet_mean(angles)
    grid = torch.linspace(0, TURN, 4001, dtype=torch.float64)
    assert 0 <= float(mean) <= TURN
    assert float(spread(mean[None], angles)) <= float(spread(grid, angles).min()) + 1e-9


def test_the_mean_of_angles_on_a_half_circle_is_the_plain_one() -> None:
    """Even where the half circle lies across 0, and for a batch."""
    offsets = pi * torch.rand(50, 10, generator=rng(), dtype=torch.float64)
    found = frechet_mean((offsets + TURN - 1).remainder(TURN))
    torch.testing.assert_close(wrap(found - offsets.mean(-1) + 1), torch.zeros(50, dtype=torch.float64))


@pytest.mark.parametrize("variance", [1e-3, 0.1, 0.7, 3.0])
def test_the_time_of_a_variance(variance: float) -> None:
    """Oracle: Var r = 2 int_0^t (1 - exp(-u))^2 du, the displacement as an integral over the Brownian motion."""
    t = torch.tensor(kernel_time(variance), dtype=torch.float64)
    u = torch.linspace(0, 1, 200_001, dtype=torch.float64) * t
    assert float(2 * torch.trapezoid((1 - torch.exp(-u)).square(), u)) == pytest.approx(variance, rel=1e-8)


def test_the_noise_has_the_variance_asked_for() -> None:
    """Without constraint, and far from wrapping, the mean moves by the mean of ten independent displacements."""
    crystal = torch.full((10,), 1.0, dtype=torch.float64)
    found = shifts(crystal, 0.1, False, 4000, rng())
    assert float(found.values.std()) == pytest.approx(sqrt(0.1 / 10), rel=0.05)
    assert abs(float(found.values.mean())) < 0.01
    assert (found.preserved, found.discrete) == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_constraint_preserves_the_mean_or_moves_it_by_tenths_of_a_turn(seed: int) -> None:
    generator = rng(seed)
    half, whole = crystals_on_a_circle(1, 0.5, generator)[0], crystals_on_a_circle(1, 1.0, generator)[0]
    little, much = shifts(half, 0.1, True, 500, generator), shifts(whole, 0.7, True, 500, generator)
    assert little.preserved > 0.98
    assert little.discrete == much.discrete == 1.0
    assert 0 < much.preserved < 1


def test_crystals_are_where_they_should_be() -> None:
    drawn = crystals_on_a_circle(300, 0.5, rng())
    away = wrap(drawn - frechet_mean(drawn).unsqueeze(-1)).abs().max(-1).values
    assert ((drawn >= 0) & (drawn < TURN)).all()
    assert (away < pi).all()
    assert float(crystals_on_a_circle(300, 1.0, rng()).sin().mean()) == pytest.approx(0, abs=0.05)


def test_figure_and_record_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "folder"
    monkeypatch.setattr("sys.argv", ["frechet_mean", "--out", str(out), "--samples", "50", "--crystals", "2"])
    analysis.main()
    assert {path.name for path in out.iterdir()} == {"frechet_mean.png", "frechet_mean.json"}
    assert (out / "frechet_mean.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((out / "frechet_mean.json").read_text())
    cases = {(row["variance"], row["zero_net_translation"]): row for row in record["shifts"]}
    assert set(cases) == {(0.1, True), (0.1, False), (0.7, True), (0.7, False)}
    assert cases[0.1, True]["share_preserved"] > cases[0.1, False]["share_preserved"] == 0
    assert set(record["zero_net_translation_over_crystals"]) == {"half of the circle", "the whole circle"}
    analyse(tmp_path / "again", samples=50, crystals=2)
    assert json.loads((tmp_path / "again" / "frechet_mean.json").read_text()) == record
