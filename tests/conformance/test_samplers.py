"""Every registered sampler conforms."""

import pytest

from kldm.registry import samplers
from kldm.testing import SAMPLER_CHECKS, small_model
from kldm.testing.samplers import SamplerCheck

OURS = [name for name in samplers.names() if samplers.get(name).__module__.startswith("kldm.")]


@pytest.mark.parametrize("check", SAMPLER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", OURS)
def test_sampler(name: str, check: SamplerCheck) -> None:
    check(samplers.get(name)(steps=3), small_model)


@pytest.mark.parametrize("name", OURS)
def test_it_has_defaults(name: str) -> None:
    assert samplers.get(name)().steps > 1
