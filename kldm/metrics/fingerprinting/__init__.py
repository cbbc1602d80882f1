"""Fingerprints of structures and compositions, and what is judged by them."""
