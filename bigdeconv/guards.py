"""Whether it is safe to write, replace or go on with an output: what is refused before anything is touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from bigdeconv import document as documents
from bigdeconv.errors import InvalidInputError, OutputExistsError, StoreError
from bigdeconv.storage import collection, omezarr
from bigdeconv.storage.arrays import is_remote, resolve_location
from bigdeconv.storage.ledger import Ledger, ledger_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bigdeconv.document import Document


def local_output(location: str) -> Path:
    """Return the absolute path of an output, which is no URL."""
    if is_remote(location):
        raise InvalidInputError(
            f"output: got {location!r}; the output must be a local path (a shared file system will do)."
        )
    return Path(location).absolute()


def require_writable(output: Path) -> None:
    """Refuse an output in a folder where nothing can be made."""
    parent = next(p for p in output.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise StoreError(
            f"output: {str(output)!r} cannot be made, {str(parent)!r} is no folder to write in; give another path."
        )


def require_free(output: Path, *, asked_to_resume: bool) -> None:
    """Refuse to write where something is."""
    for path in (output, ledger_path(output)):
        if path.exists() and asked_to_resume:
            raise OutputExistsError(
                f"output: {str(output)!r} has no ledger beside it, so nothing can be resumed; replace it with --overwrite."
            )
        if path.exists():
            raise OutputExistsError(
                f"output: {str(path)!r} exists; go on with --resume if it is an unfinished run, or replace it with --overwrite."
            )


def require_replaceable(output: Path, sources: Iterable[str]) -> None:
    """Refuse to overwrite anything but a zarr group of its own, or a folder that an earlier run has made and nobody added to."""
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
    """Tell whether all in a folder comes from the run whose ledger lies beside it."""
    if not output.is_dir() or not ledger_path(output).exists():
        return False
    try:
        made = documents.load(Ledger.open(output)).images.names
    except StoreError:
        return False
    return {path.name for path in output.iterdir()} <= set(made)


def require_idle(output: Path) -> None:
    """Refuse an output that another run is writing."""
    if ledger_path(output).exists() and Ledger(output).is_being_written():
        raise StoreError(f"output: another run is writing {str(output)!r}; wait for it or stop it.")


def remove(output: Path) -> None:
    """Remove an output and its ledger; stopped half-way, neither is left under its name."""
    require_idle(output)
    found = [path for path in (ledger_path(output), output) if path.exists()]
    doomed = [path.rename(path.with_name(f".{path.name}.{uuid4().hex[:12]}.removed")) for path in found]
    for path in doomed:
        shutil.rmtree(path)


def require_same_job(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to resume a run whose identity is not the one that is asked for; name what differs."""
    if old == new:
        return
    differing = [k for k in new if k != "parameters" and old.get(k) != new[k]]
    parameters = [k for k, v in new["parameters"].items() if old["parameters"].get(k) != v]
    details = [f"{k} (was {old['parameters'].get(k)}, is {new['parameters'][k]})" for k in parameters]
    raise InvalidInputError(
        f"resume: the stored run differs in {', '.join([*differing, *details])}; resume it with the same settings, with "
        "`bigdeconv resume`, or start anew with --overwrite."
    )


def require_same_numbers(document: Document) -> None:
    """Refuse to go on where the numbers would change midway: another version's arithmetic, another input."""
    if document.identity["numerics"] != documents.NUMERICS_VERSION:
        raise StoreError(
            "output: the run was planned by a version that computes other numbers; start anew with --overwrite."
        )
    for volume in document.volumes:
        voxel = volume.voxel_zyx_um if document.config.voxel_um else None
        current = omezarr.describe(volume.location, level=volume.level, voxel_zyx_um=voxel)
        for name in ("shape", "dtype", "axes", "array_path"):
            if getattr(current, name) != getattr(volume, name):
                raise StoreError(
                    f"input: {volume.location!r} has changed since the run was planned ({name} was {getattr(volume, name)}, is "
                    f"{getattr(current, name)}); start anew with --overwrite."
                )
