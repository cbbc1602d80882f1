"""Tests of kldm.potentials."""
