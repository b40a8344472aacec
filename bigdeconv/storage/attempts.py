"""Attempts at tasks that write: a later attempt ends an earlier one, whose worker was stopped or cut off, and goes on.

An attempt is a small file in the scratch folder with its number and a name of its own.  A worker looks at it just before it
writes, and stops where another one has taken its place, or the task is done and the file gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from bigdeconv.storage.atomic import replaced_file


class SupersededError(Exception):
    """Another attempt has taken the place of this one."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a task."""

    path: Path
    number: int
    """From 1 on."""
    name: str

    @classmethod
    def begin(cls, scratch: str | Path, task: str) -> Attempt:
        """Begin an attempt at a task, and end those before it.

        Parameters
        ----------
        scratch : str or Path
            Folder of a run.
        task : str
            Name of the task within the run.
        """
        path = _path(scratch, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        attempt = cls(path, _number(_content(path)) + 1, uuid4().hex)
        with replaced_file(path) as building:
            building.write_text(attempt._text)
        return attempt

    def require_standing(self) -> None:
        """Refuse to go on where another attempt has begun, or the task is done.

        Raises
        ------
        SupersededError
            In that case.
        """
        if _content(self.path) != self._text:
            raise SupersededError(f"{self.path.name}: another attempt has taken the place of number {self.number}")

    @property
    def _text(self) -> str:
        return f"{self.number} {self.name}"


def end_attempts(scratch: str | Path, task: str) -> None:
    """Note that a task is done: no attempt stands any more."""
    _path(scratch, task).unlink(missing_ok=True)


def _content(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _number(content: str) -> int:
    number = content.partition(" ")[0]
    return int(number) if number.isdecimal() else 0


def _path(scratch: str | Path, task: str) -> Path:
    kind, _, name = task.rpartition("-")
    return Path(scratch) / "attempts" / (kind or "task") / f"{int(name) // 1000:06d}" / f"{task}.attempt"
