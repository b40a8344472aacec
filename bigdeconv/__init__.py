"""Deconvolution of volumes that outgrow memory, from OME-Zarr to OME-Zarr.

The names here load on first use, so that ``import bigdeconv`` and the command line's help cost no torch and no Dask.

>>> import bigdeconv
>>> bigdeconv.JobConfig(input="in.zarr", output="out.zarr").method
'garl'
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigdeconv import models as models
    from bigdeconv import psf as psf
    from bigdeconv import simulation as simulation
    from bigdeconv import training as training
    from bigdeconv.config import JobConfig as JobConfig
    from bigdeconv.config import make_config as make_config
    from bigdeconv.deconvolution import Result as Result
    from bigdeconv.deconvolution import deconvolve as deconvolve
    from bigdeconv.demo import run_demo as run_demo
    from bigdeconv.errors import BigdeconvError as BigdeconvError
    from bigdeconv.errors import BudgetError as BudgetError
    from bigdeconv.errors import ClusterLostError as ClusterLostError
    from bigdeconv.errors import DamagedOverlapError as DamagedOverlapError
    from bigdeconv.errors import DiskFullError as DiskFullError
    from bigdeconv.errors import InvalidInputError as InvalidInputError
    from bigdeconv.errors import OutputExistsError as OutputExistsError
    from bigdeconv.errors import StoreError as StoreError
    from bigdeconv.jobs.state import status as status
    from bigdeconv.pipeline import Events as Events
    from bigdeconv.pipeline import JobPlan as JobPlan
    from bigdeconv.pipeline import RunSummary as RunSummary
    from bigdeconv.pipeline import plan as plan
    from bigdeconv.pipeline import repair as repair
    from bigdeconv.pipeline import report as report
    from bigdeconv.pipeline import resume as resume
    from bigdeconv.pipeline import run as run
    from bigdeconv.pipeline import tune as tune
    from bigdeconv.pipeline import validate as validate
    from bigdeconv.psf import PSF as PSF
    from bigdeconv.psf import prepare as prepare_psf

__version__ = "0.1.0"

# A library does not print its log; a run writes it to a file beside its output.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_PACKAGES = ("models", "psf", "simulation", "training")
_HOMES = {
    "BigdeconvError": "errors",
    "BudgetError": "errors",
    "ClusterLostError": "errors",
    "Events": "pipeline",
    "InvalidInputError": "errors",
    "JobConfig": "config",
    "JobPlan": "pipeline",
    "DamagedOverlapError": "errors",
    "DiskFullError": "errors",
    "OutputExistsError": "errors",
    "PSF": "psf",
    "Result": "deconvolution",
    "RunSummary": "pipeline",
    "StoreError": "errors",
    "deconvolve": "deconvolution",
    "make_config": "config",
    "plan": "pipeline",
    "prepare_psf": "psf",
    "report": "pipeline",
    "repair": "pipeline",
    "resume": "pipeline",
    "run": "pipeline",
    "run_demo": "demo",
    "status": "jobs.state",
    "tune": "pipeline",
    "validate": "pipeline",
}
_NAMES_AT_HOME = {"prepare_psf": "prepare"}
__all__ = [
    "PSF",
    "BigdeconvError",
    "BudgetError",
    "ClusterLostError",
    "DamagedOverlapError",
    "DiskFullError",
    "Events",
    "InvalidInputError",
    "JobConfig",
    "JobPlan",
    "OutputExistsError",
    "RunSummary",
    "StoreError",
    "__version__",
    "deconvolve",
    "make_config",
    "models",
    "plan",
    "prepare_psf",
    "psf",
    "repair",
    "report",
    "resume",
    "run",
    "run_demo",
    "simulation",
    "status",
    "training",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"bigdeconv.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'bigdeconv' has no attribute {name!r}")
    return getattr(import_module(f"bigdeconv.{_HOMES[name]}"), _NAMES_AT_HOME.get(name, name))


def __dir__() -> list[str]:
    return sorted(__all__)
