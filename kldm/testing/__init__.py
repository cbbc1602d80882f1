"""Checks that every component must pass, yours as well as kldm's. A failure is an ``AssertionError`` of one sentence.

    from kldm.testing import check_process

    def test_conforms() -> None:
        check_process(MyProcess())

``PROCESS_CHECKS`` and the like are the single checks, for ``pytest.mark.parametrize``.
"""

from kldm.testing.augmentations import AUGMENTATION_CHECKS, check_augmentation
from kldm.testing.crystals import random_crystals, random_latent
from kldm.testing.metrics import METRIC_CHECKS, check_metric
from kldm.testing.networks import INTERFACES, NETWORK_CHECKS, check_network
from kldm.testing.potentials import POTENTIAL_CHECKS, check_potential
from kldm.testing.processes import PROCESS_CHECKS, check_process
from kldm.testing.samplers import SAMPLER_CHECKS, check_sampler, small_model

__all__ = [
    "AUGMENTATION_CHECKS",
    "INTERFACES",
    "METRIC_CHECKS",
    "NETWORK_CHECKS",
    "POTENTIAL_CHECKS",
    "PROCESS_CHECKS",
    "SAMPLER_CHECKS",
    "check_augmentation",
    "check_metric",
    "check_network",
    "check_potential",
    "check_process",
    "check_sampler",
    "random_crystals",
    "random_latent",
    "small_model",
]
