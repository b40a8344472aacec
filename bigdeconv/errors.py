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
    """Overlap slabs that are missing or not as their blocks left them; the blocks can be solved again for them."""

    def __init__(self, message: str, blocks: tuple[int, ...]) -> None:
        super().__init__(message)
        self.blocks = blocks

    def __reduce__(self) -> tuple[type[DamagedOverlapError], tuple[str, tuple[int, ...]]]:
        return type(self), (str(self), self.blocks)


class OutputExistsError(StoreError, FileExistsError):
    """The output is already there and neither resume nor overwrite was asked for."""


class BudgetError(BigdeconvError, MemoryError):
    """No block fits the memory that a worker may use."""


class ClusterLostError(BigdeconvError, ConnectionError):
    """The Dask scheduler or all of its workers went away."""
