"""Progress: a bar on a terminal, plain lines elsewhere; always on standard error, so that standard output is the result."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigdeconv.engine.schedule import Progress
    from bigdeconv.job import Outline
    from bigdeconv.summary import Summary

LINE_EVERY_SECONDS = 10.0


class Reporter(AbstractContextManager["Reporter"]):
    """Shows what happens in a run."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and not quiet
        self._started = time.monotonic()
        self._first: int | None = None
        self._last_line = 0.0
        self._voxels_per_block = 0.0
        self._warned: set[str] = set()
        self._bar: Any = None
        self._task: Any = None

    def planned(self, outline: Outline) -> None:
        """Say how the volume is cut."""
        plan = outline.plan
        self._voxels_per_block = plan.roi.size * len(plan.timepoints) * len(plan.channels) / plan.n_blocks
        z, y, x = plan.core_shape
        volumes = f" in {len(outline.volumes)} volumes" if len(outline.volumes) > 1 else ""
        method = f"{outline.config.method}, {outline.iterations} iterations"
        self._say(f"{outline.n_blocks} blocks of {z},{y},{x} voxels{volumes}, {method}")

    def warned(self, sentence: str) -> None:
        """Say what the user should know, once."""
        if sentence not in self._warned:
            self._warned.add(sentence)
            self._say(f"warning: {sentence}")

    def finished(self, summary: Summary) -> None:
        """Say what came up since the start."""
        for sentence in summary.warnings:
            self.warned(sentence)

    def connected(self, dashboard: str) -> None:
        """Say where the dashboard is; from here on time counts."""
        self._started = time.monotonic()
        self._say(f"dashboard: {dashboard}")

    def phase(self, name: str) -> None:
        """Say what is done now."""
        if name != "blocks":
            self._say("probing seams" if name == "seams" else f"pyramid: {name}")

    def progressed(self, progress: Progress) -> None:
        """Show how far the blocks are."""
        if self._first is None:
            self._first = progress.blocks_finished - 1
        if self._quiet:
            return
        if self._terminal:
            self._draw(progress)
        elif (
            time.monotonic() - self._last_line >= LINE_EVERY_SECONDS
            or progress.blocks_finished == progress.blocks_total
        ):
            self._last_line = time.monotonic()
            print(self._text(progress), file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _text(self, progress: Progress) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-3)
        done_now = progress.blocks_finished - (self._first or 0)
        rate = done_now / elapsed
        left = (progress.blocks_total - progress.blocks_finished) / max(rate, 1e-9)
        failed = f", {progress.blocks_failed} failed" if progress.blocks_failed else ""
        return (
            f"{progress.blocks_finished}/{progress.blocks_total} blocks{failed}, "
            f"{rate * self._voxels_per_block / 1e6:.2f} Mvoxel/s, {_duration(left)} left"
        )

    def _draw(self, progress: Progress) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True))
            self._task = self._bar.add_task("", total=progress.blocks_total)
            self._bar.start()
        self._bar.update(self._task, completed=progress.blocks_finished, description=self._text(progress))

    def _say(self, line: str) -> None:
        if not self._quiet:
            (self._bar.console.print if self._bar else lambda text: print(text, file=sys.stderr, flush=True))(line)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
