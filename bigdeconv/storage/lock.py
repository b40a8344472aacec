"""The lock of a run: one driver writes, and anybody may ask whether one does."""

from __future__ import annotations

import errno
import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bigdeconv.errors import StoreError
from bigdeconv.storage.atomic import made_a_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_SECONDS = 2.0
"""Patience with those who look for a moment whether the lock is held."""


class DriverLock:
    """An advisory lock, which the operating system releases when its holder dies.

    Parameters
    ----------
    path : Path
        A local file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock.

        Raises
        ------
        StoreError
            If another living driver holds it.
        """
        from filelock import FileLock, Timeout  # slow to import, and not needed by those who ask

        lock = FileLock(self._path, timeout=LOCK_SECONDS)
        try:
            holding = lock.acquire()
        except Timeout as error:
            raise StoreError(
                f"output: another run is writing it (the lock {lock.lock_file!r} is held); wait for it or stop it."
            ) from error
        except OSError as error:
            raise StoreError(f"output: the lock {lock.lock_file!r} cannot be taken ({error}).") from error
        with holding:
            yield

    def is_held(self) -> bool:
        """Tell whether a living driver holds the lock; the right to read suffices.

        Raises
        ------
        StoreError
            If the file system knows no locks.
        """
        # A shared lock, which filelock does not offer for a file that may only be read: probes do not disturb one another, and
        # a network file system grants it to readers.
        if not self._path.is_file():  # nobody can hold it
            return False
        try:
            with self._path.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                return True
            raise StoreError(f"output: the lock {str(self._path)!r} cannot be looked at ({error}).") from error
        return False

    def create(self) -> None:
        """Make the file, or what stands in its place to one."""
        made_a_file(self._path)
