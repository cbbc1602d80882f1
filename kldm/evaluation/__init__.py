"""Evaluation: judging samples, writing results, and comparing reports."""
