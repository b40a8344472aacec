"""Preconditions of writing, replacing or continuing an output: checked before anything is touched."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from bigdeconv.errors import BudgetError, InvalidInputError, OutputExistsError, StoreError
from bigdeconv.numerics import NUMERICS_VERSION
from bigdeconv.storage import collection, omezarr
from bigdeconv.storage.ledger import Ledger, ledger_path
from bigdeconv.storage.locations import is_remote, masked, resolve_location

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bigdeconv.engine.machine import Gpu
    from bigdeconv.jobs.job import Job
    from bigdeconv.jobs.record import RunRecord


def require_guarded_script() -> None:
    """Refuse a run that a script starts again when a worker imports it."""
    # The flag of `multiprocessing` itself: true while a spawned process imports the script of its parent.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise InvalidInputError(
            "A worker imported the script that started it, and came to the run again; put the call below "
            '`if __name__ == "__main__":`.'
        )


def local_output(location: str) -> Path:
    """Return the absolute path of an output.

    Raises
    ------
    InvalidInputError
        If it is a URL.
    """
    if is_remote(location):
        raise InvalidInputError(
            f"output: got {masked(location)!r}; the output must be a local path (a shared file system will do)."
        )
    return Path(location).absolute()


def require_writable(output: Path) -> None:
    """Refuse an output in a folder where nothing can be made."""
    parent = next(p for p in output.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise StoreError(
            f"output: {str(output)!r} cannot be made, {str(parent)!r} is not a writable folder; check its "
            "permissions or give another path."
        )


def require_free(output: Path, *, asked_to_resume: bool) -> None:
    """Refuse a path where something exists."""
    for path in (output, ledger_path(output)):
        if path.exists() and asked_to_resume:
            raise OutputExistsError(
                f"output: {str(output)!r} has no ledger beside it, so nothing can be resumed; replace it with --overwrite."
            )
        if path.exists():
            raise OutputExistsError(
                f"output: {str(path)!r} exists; continue it with --resume if it is an unfinished run, or replace it with "
                "--overwrite."
            )


def require_replaceable(output: Path, sources: Iterable[str]) -> None:
    """Refuse to overwrite an input, or anything but a zarr group or a folder in which all images come from an earlier run."""
    for source in map(resolve_location, sources):
        if is_remote(source):
            continue
        kept, doomed = Path(source).resolve(), output.resolve()
        if output.is_symlink() or kept == doomed or kept in doomed.parents or doomed in kept.parents:
            raise InvalidInputError(
                f"output: {str(output)!r} is, holds or lies in the input {source!r}, or is a link; give another path."
            )
    if output.exists() and not collection.is_group(output) and not _is_own_folder(output):
        raise OutputExistsError(
            f"output: {str(output)!r} is not a zarr group; it is not overwritten, give another path."
        )
    require_idle(output)


def _is_own_folder(output: Path) -> bool:
    """Tell whether everything in a folder comes from the run whose ledger lies beside it."""
    if not output.is_dir() or not ledger_path(output).exists():
        return False
    try:
        plan = Ledger.open(output).plan()
        # Plans of schema 1 have no facts of their own: a run of theirs can be replaced all the same.
        made = plan.get("facts", plan)["images"]["names"]
    except (StoreError, KeyError, TypeError):
        return False
    return {path.name for path in output.iterdir()} <= set(made)


def require_idle(output: Path) -> None:
    """Refuse an output that another run is writing."""
    if ledger_path(output).exists() and Ledger(output).lock.is_held():
        raise StoreError(f"output: another run is writing {str(output)!r}; wait for it or stop it.")


def remove(output: Path) -> None:
    """Remove an output and its ledger: renamed first, so that an interrupted removal leaves neither under its name."""
    require_idle(output)
    found = [path for path in (ledger_path(output), output) if path.exists()]
    doomed = [path.rename(path.with_name(f".{path.name}.{uuid4().hex[:12]}.removed")) for path in found]
    for path in doomed:
        shutil.rmtree(path)


def require_same_job(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to resume a run of another identity, and name the differences."""
    if old == new:
        return
    differing = [k for k in new if k != "parameters" and old.get(k) != new[k]]
    parameters = [k for k, v in new["parameters"].items() if old["parameters"].get(k) != v]
    details = [f"{k} (was {old['parameters'].get(k)}, is {new['parameters'][k]})" for k in parameters]
    raise InvalidInputError(
        f"resume: the stored run differs in {', '.join([*differing, *details])}; resume it with the same settings, with "
        "`bigdeconv resume`, or start again with --overwrite."
    )


def require_fitting_psf(job: Job) -> None:
    """Raise where the settings are strict and the data do not fit the PSF.

    Raises
    ------
    InvalidInputError
        With the warnings of the calibration.
    """
    found = [s for calibration in job.calibrations.values() for s in calibration.findings.warnings]
    if job.plan.facts.config.strict and found:
        raise InvalidInputError(" ".join(["strict: the data do not fit the settings.", *found]))


def require_same_numbers(record: RunRecord) -> None:
    """Refuse to continue where the numbers would change midway: numerics of another version, or another input."""
    if record.identity["numerics"] != NUMERICS_VERSION:
        raise StoreError(
            "output: the run was planned by a version that computes other numbers; start the run again with --overwrite."
        )
    has_own_voxel = record.facts.config.voxel_um is not None
    for volume in record.facts.volumes:
        voxel = volume.voxel_zyx_um if has_own_voxel else None
        current = omezarr.describe(volume.location, level=volume.level, voxel_zyx_um=voxel)
        for name in ("shape", "dtype", "axes", "array_path"):
            if getattr(current, name) != getattr(volume, name):
                raise StoreError(
                    f"input: {volume.location!r} has changed since the run was planned ({name} was {getattr(volume, name)}, is "
                    f"{getattr(current, name)}); start the run again with --overwrite."
                )


def require_tls(address: str, *, wanted: bool) -> list[str]:
    """Return a warning about a cluster that speaks in the open, or refuse it.

    Parameters
    ----------
    address : str
        Of the scheduler.
    wanted : bool
        Whether the user demands TLS.

    Raises
    ------
    InvalidInputError
        If it is demanded, and the address is of another protocol.
    """
    if not address.startswith("tcp://"):
        return []
    sentence = (
        "The cluster speaks without TLS: whoever reaches its ports can read what it sends, and run code as you. Start scheduler "
        "and workers with --protocol tls and certificates, and set DASK_DISTRIBUTED__COMM__TLS__* for this command."
    )
    if wanted:
        raise InvalidInputError(f"require_tls: {sentence}")
    return [sentence]


def require_memory(limits_bytes: list[int], needed_bytes: int) -> None:
    """Refuse a cluster with a worker whose memory limit is less than a block needs.

    Raises
    ------
    BudgetError
        Dask would stop or kill the worker in mid-block.
    """
    if limits_bytes and min(limits_bytes) < needed_bytes:
        raise BudgetError(
            f"memory: a block needs {needed_bytes / 2**30:.2f} GiB per worker, but a worker of the cluster is limited to "
            f"{min(limits_bytes) / 2**30:.2f} GiB; lower --memory to that, or start workers with a larger --memory-limit."
        )


def kernel_warnings(problems: dict[str, str | None]) -> list[str]:
    """Return a warning if the learned prior falls back to slower convolutions; parameter as `kernel_problems` returns it."""
    told = {address: problem for address, problem in sorted(problems.items()) if problem}
    if not told:
        return []
    address, problem = next(iter(told.items()))
    return [
        f"{len(told)} of {len(problems)} workers cannot use the fast kernels of the learned prior on their GPU, and take several "
        f"times as long ({address}: {problem}). They need Triton, a C compiler and a writable TRITON_CACHE_DIR."
    ]


def idle_gpus(cuda_devices: dict[str, int]) -> list[str]:
    """Return a warning if workers that are to compute on CPUs have GPUs; by the CUDA devices of each worker."""
    idle = sum(count > 0 for count in cuda_devices.values())
    return [f"{idle} of {len(cuda_devices)} workers have a GPU that is not used; add --device cuda."] if idle else []


def require_gpus(gpus: dict[str, Gpu | None], peak_bytes: int) -> None:
    """Refuse workers of which one has no GPU, two share one, or one's GPU has too little free memory.

    Parameters
    ----------
    gpus : dict of Gpu or None
        GPU of each worker, by its address.
    peak_bytes : int
        Memory of a GPU that a block takes.

    Raises
    ------
    InvalidInputError
        If a worker has no GPU of its own.
    BudgetError
        If a worker's GPU has too little free memory.
    """
    there = {address: gpu for address, gpu in gpus.items() if gpu is not None}
    without = sorted(gpus.keys() - there.keys())
    if without:
        raise InvalidInputError(
            f"device: the run is for GPUs, but {len(without)} of {len(gpus)} workers have no CUDA device ({without[0]}); "
            "use workers with GPUs, or start it with --device cpu."
        )
    [(identity, n_workers)] = Counter(gpu.identity for gpu in there.values()).most_common(1)
    if n_workers > 1:
        raise InvalidInputError(
            f"device: {n_workers} workers compute on one GPU ({identity}), expected one each; start each worker with a "
            "CUDA_VISIBLE_DEVICES of its own, as dask-cuda does."
        )
    address, fullest = min(there.items(), key=lambda item: item[1].free_bytes)
    if fullest.free_bytes < peak_bytes:
        raise BudgetError(
            f"device: a block needs {peak_bytes / 2**30:.2f} GiB of GPU memory, but {fullest.name} of {address} has "
            f"{fullest.free_bytes / 2**30:.2f} GiB free; end what else uses it, or give a smaller --block-shape."
        )
