"""Deconvolution of volumes that outgrow memory, from OME-Zarr to OME-Zarr.

The names here load on first use, so that ``import bigdeconv`` and the command line's help cost no torch and no Dask.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigdeconv.config import JobConfig as JobConfig
    from bigdeconv.config import make_config as make_config
    from bigdeconv.deconvolution import deconvolve as deconvolve
    from bigdeconv.pipeline import plan as plan
    from bigdeconv.pipeline import resume as resume
    from bigdeconv.pipeline import run as run
    from bigdeconv.pipeline import status as status
    from bigdeconv.pipeline import validate as validate
    from bigdeconv.psf import prepare as prepare_psf

__version__ = "0.1.0"

_HOMES = {
    "JobConfig": ("bigdeconv.config", "JobConfig"),
    "deconvolve": ("bigdeconv.deconvolution", "deconvolve"),
    "make_config": ("bigdeconv.config", "make_config"),
    "plan": ("bigdeconv.pipeline", "plan"),
    "prepare_psf": ("bigdeconv.psf", "prepare"),
    "resume": ("bigdeconv.pipeline", "resume"),
    "run": ("bigdeconv.pipeline", "run"),
    "status": ("bigdeconv.pipeline", "status"),
    "validate": ("bigdeconv.pipeline", "validate"),
}
__all__ = [
    "JobConfig",
    "__version__",
    "deconvolve",
    "make_config",
    "plan",
    "prepare_psf",
    "resume",
    "run",
    "status",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bigdeconv' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
