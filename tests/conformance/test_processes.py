"""Every registered process conforms."""

from collections.abc import Mapping

import pytest

from kldm.errors import KldmError
from kldm.interfaces import DiffusionProcess, Estimates, Restricts
from kldm.processes import LogTan
from kldm.registry import processes
from kldm.testing import PROCESS_CHECKS
from kldm.testing.processes import ProcessCheck

RAW = LogTan(standardise=False)
REQUIRED: Mapping[str, Mapping[str, object]] = {
    "vp_euclidean.v1": {"codec": RAW},
    "euclidean_flow.v1": {"codec": RAW},
    "lattice_flow.v1": {"codec": RAW, "fit": {"mean": [1.7, 1.8, 1.9], "std": [0.1, 0.2, 0.3]}},
    "property.v1": {"column": "energy", "fit": {"mean": -0.5, "std": 2.0}},
    "wrapped_ve.v1": {"sigma_min": 1e-4, "step_lr": 4e-9},
    "com_free_ve.v1": {"sigma_min": 1e-4, "step_lr": 4e-9},
}
"""Arguments without a default, and those without which noise is left at s = 0."""


def build(name: str) -> DiffusionProcess:
    try:
        process: DiffusionProcess = processes.get(name)(**REQUIRED.get(name, {}))
    except TypeError as error:
        raise AssertionError(f"give REQUIRED the arguments that {name} needs: {error}") from error
    return process


@pytest.fixture(params=processes.names())
def process(request: pytest.FixtureRequest) -> DiffusionProcess:
    return build(request.param)


@pytest.mark.parametrize("check", PROCESS_CHECKS, ids=lambda check: check.__name__)
def test_process(process: DiffusionProcess, check: ProcessCheck) -> None:
    check(process)


def test_every_process_of_ours_estimates(process: DiffusionProcess) -> None:
    assert isinstance(process, Estimates)


@pytest.mark.parametrize("elements", [(), (0,), (3, 101)])
def test_a_restriction_to_what_is_no_element_is_refused(process: DiffusionProcess, elements: tuple[int, ...]) -> None:
    if isinstance(process, Restricts):
        with pytest.raises(KldmError):
            process.restricted(elements)
