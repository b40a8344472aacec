"""The errors that bigdeconv raises on purpose.

Every error is also one of Python's own kinds, so that callers who know nothing of bigdeconv can catch it.  Its text is one
sentence that names the argument, what it got, what is allowed and what to do.
"""

from __future__ import annotations


class BigdeconvError(Exception):
    """Anything that bigdeconv refuses or reports itself."""


class InvalidInputError(BigdeconvError, ValueError):
    """An argument, PSF, model or plan that cannot be used."""


class StoreError(BigdeconvError, OSError):
    """A volume, ledger or file that cannot be opened, read or written."""


class DiskFullError(StoreError):
    """Nothing more can be written: the disk or the quota is full, or the disk takes no writes."""


class DamagedOverlapError(StoreError):
    """An overlap slab that is missing or not as its block left it; the block can be solved again for it."""

    def __init__(self, message: str, block: int) -> None:
        super().__init__(message)
        self.block = block

    def __reduce__(self) -> tuple[type[DamagedOverlapError], tuple[str, int]]:
        return type(self), (str(self), self.block)


class OutputExistsError(StoreError, FileExistsError):
    """The output is already there and neither resume nor overwrite was asked for."""


class BudgetError(BigdeconvError, MemoryError):
    """No block fits the memory that a worker may use."""


class ClusterLostError(BigdeconvError, ConnectionError):
    """The Dask scheduler or all of its workers went away."""
