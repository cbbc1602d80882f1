"""Runs: the experiment that a recipe describes, and the folder in which it is trained, sampled and judged."""
