"""Every registered augmentation conforms."""

import pytest

from kldm.registry import augmentations
from kldm.testing import AUGMENTATION_CHECKS
from kldm.testing.augmentations import AugmentationCheck


@pytest.mark.parametrize("check", AUGMENTATION_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", augmentations.names())
def test_augmentation(name: str, check: AugmentationCheck) -> None:
    check(augmentations.get(name)())
