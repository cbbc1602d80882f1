"""Every registered network conforms."""

from functools import partial

import pytest

from kldm.registry import networks
from kldm.testing import NETWORK_CHECKS
from kldm.testing.networks import NetworkCheck, NetworkFactory

OVER_PAIRS = {"hidden": 24, "layers": 2, "time_features": 8, "frequencies": 6}
FACTORIES: dict[str, NetworkFactory] = {
    name: partial(networks.get(name), **OVER_PAIRS)
    for name in networks.names()
    if networks.get(name).__module__.startswith("kldm.")
}
"""Those of kldm, small enough for tests."""


@pytest.mark.parametrize("check", NETWORK_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", FACTORIES)
def test_network(name: str, check: NetworkCheck) -> None:
    check(FACTORIES[name])
