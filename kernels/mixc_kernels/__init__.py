"""Triton, torch and numba kernels of mixc, each with a plain reference beside it."""
