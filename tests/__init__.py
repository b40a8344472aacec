"""Tests and benchmarks; a package of its own, because some libraries install one of the same name."""
