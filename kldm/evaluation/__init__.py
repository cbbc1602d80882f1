"""Evaluation: samples judged, what came of it on disk, and reports side by side."""
