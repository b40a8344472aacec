"""Options of the runs that the tests of the command line make."""

from tests.make import RL

TWO_BLOCKS = (*RL, "--block-shape", "8,32,32")
LONG = ("--method", "rl", "--iterations", "250", "--device", "cpu", "--output-scale", "8", "--block-shape", "8,32,32")
"""Eight blocks of a few tenths of a second each, and no calibration to wait for."""
