"""Measurements before the first block: samples, the numbers of a channel, the halo, the cost of a block."""
