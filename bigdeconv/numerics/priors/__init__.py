"""Priors on the estimate: their values, gradients and quadratic majorisers.

Import from the modules: `protocol` is the interface for the solvers, `tv` and `wcrr` are the priors.  `overlap_save` and
`numba_kernels` load Numba, whose memory is promised only to workers that use the learned prior on a CPU.
"""
