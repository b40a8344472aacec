"""Clusters to work on: one of our own on this machine, or one that runs already."""
