"""Blocks on the workers of a Dask cluster: the only package that knows Dask."""
