"""Runs: what a recipe is, and a run and its folder."""
