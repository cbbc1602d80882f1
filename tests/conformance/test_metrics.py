"""Every registered metric conforms."""

import pytest

from kldm.registry import metrics
from kldm.testing import METRIC_CHECKS
from kldm.testing.metrics import MetricCheck


@pytest.mark.parametrize("check", METRIC_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", metrics.names())
def test_metric(name: str, check: MetricCheck) -> None:
    check(metrics.get(name)())
