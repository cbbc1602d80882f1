"""Relaxation by a potential, convex hulls, and what is read off them."""
