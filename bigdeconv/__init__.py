"""Deconvolution of volumes that outgrow memory, from OME-Zarr to OME-Zarr.

The names here load on first use, so that ``import bigdeconv`` and the command line's help cost no torch and no Dask.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigdeconv.deconvolution import deconvolve

__version__ = "0.1.0"

_HOMES = {
    "deconvolve": "bigdeconv.deconvolution",
}
__all__ = ["__version__", "deconvolve"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bigdeconv' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
