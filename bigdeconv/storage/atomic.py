"""Files and folders that appear whole or not at all: written beside their place and renamed into it."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def replaced_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield the path of a file to be written, which replaces ``path`` when the block ends without an error.

    Parameters
    ----------
    path : Path
        Place of the file; its folder exists.
    sync : bool
        Whether the contents are on disk before the file appears.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "notes.txt"
    >>> with replaced_file(target) as building:
    ...     _ = building.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    building = path.with_name(f"{path.stem}.{uuid4().hex}.partial{path.suffix}")
    try:
        yield building
        if sync:
            synced(building)
        building.replace(path)
    except BaseException:
        with suppress(OSError):
            building.unlink()
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield the path of a hidden folder to be made, which is renamed to ``path`` when the block ends without an error.

    Parameters
    ----------
    path : Path
        Place of the folder, which does not exist; folders above it are made.

    Raises
    ------
    OSError
        If something other than an empty folder has appeared at ``path`` meanwhile.
    """
    hidden = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield hidden
        hidden.rename(path)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def made_a_file(path: Path) -> None:
    """Make an empty file unless there is one; an empty folder in its place is removed."""
    if path.is_dir():
        path.rmdir()
    path.touch()


def synced(path: Path) -> None:
    """Have a file's contents, or a folder's entries, on disk before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
