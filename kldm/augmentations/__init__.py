"""Augmentations: other descriptions of the same crystals for training; importing them registers them."""

from kldm.augmentations.axis_permutations import AxisPermutations

__all__ = ["AxisPermutations"]
