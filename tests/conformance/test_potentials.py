"""Every registered potential conforms."""

from pathlib import Path

import pytest

from kldm.interfaces import Potential
from kldm.registry import potentials
from kldm.testing import POTENTIAL_CHECKS
from kldm.testing.potentials import PotentialCheck
from tests.potentials.weights import tiny_weights


@pytest.fixture(params=potentials.names())
def potential(request: pytest.FixtureRequest, tmp_path: Path) -> Potential:
    """Skips where its package is not installed."""
    more = {"weights": tiny_weights(tmp_path / "tiny.pth")} if request.param == "mattersim.v1" else {}
    if request.param == "chgnet.v1":
        pytest.importorskip("chgnet")
    built: Potential = potentials.get(request.param)(**more)
    return built


@pytest.mark.parametrize("check", POTENTIAL_CHECKS, ids=lambda check: check.__name__)
def test_potential(potential: Potential, check: PotentialCheck) -> None:
    check(potential)


def test_its_name_is_that_of_the_shelf(potential: Potential) -> None:
    assert potential.identity["name"] in potentials.names()
