"""Arrays and tensors: forward model, priors, solvers, data mask, estimates.  Nothing here knows files or schedulers."""

NUMERICS_VERSION = 9
"""Raised whenever the same input and settings give other numbers than before."""
