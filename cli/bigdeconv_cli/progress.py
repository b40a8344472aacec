"""Progress: a bar on a terminal, plain lines elsewhere; always on standard error, so that standard output is the result."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigdeconv.pipeline import ChannelNumbers, Events, JobPlan, Progress, RunSummary

LINE_EVERY_SECONDS = 10.0


class Reporter(AbstractContextManager["Reporter"]):
    """Progress of a run on standard error."""

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

    @property
    def events(self) -> Events:
        """The events of a run that are shown."""
        from bigdeconv.pipeline import Events

        return Events(
            planned=self.planned,
            chosen=self.chosen,
            calibrated=self.calibrated,
            warned=self.warned,
            connected=self.connected,
            progressed=self.progressed,
            phase=self.phase,
        )

    def planned(self, plan: JobPlan) -> None:
        """Print how the volumes are cut."""
        facts, largest = plan.facts, plan.facts.largest_plan
        self._voxels_per_block = largest.roi.size * len(largest.timepoints) * len(largest.channels) / largest.n_blocks
        z, y, x = largest.core_shape
        volumes = f" in {len(facts.volumes)} volumes" if len(facts.volumes) > 1 else ""
        method = f"{facts.config.method}, {_iterations(facts.config.iterations, facts.settings.iterations)}"
        self._say(f"{facts.n_blocks} blocks of {z},{y},{x} voxels{volumes}, {method}")

    def chosen(self, result: str) -> None:
        """Print the result of a choice."""
        self._say(f"  {result}")

    def calibrated(self, channel: int, numbers: ChannelNumbers) -> None:
        """Print the numbers that were chosen for a channel."""
        self._say(f"channel {channel}: {numbers.text}")

    def warned(self, sentence: str) -> None:
        """Print a warning, once."""
        if sentence not in self._warned:
            self._warned.add(sentence)
            self._say(f"warning: {sentence}")

    def finished(self, summary: RunSummary) -> None:
        """Print the warnings that came up since the start."""
        for sentence in summary.warnings:
            self.warned(sentence)

    def connected(self, dashboard: str) -> None:
        """Print the address of the dashboard; the rate is measured from here on."""
        self._started = time.monotonic()
        self._say(f"dashboard: {dashboard}")

    def phase(self, name: str) -> None:
        """Print the phase that begins."""
        names = {
            "calibration": "calibrating: samples, background, scales and strength of the prior",
            "seams": "probing seams",
        }
        if name != "blocks":
            self._say(names.get(name, f"pyramid: {name}"))

    def progressed(self, progress: Progress) -> None:
        """Show the number of finished blocks, the rate and the time left."""
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


def _iterations(given: int | None, planned: int) -> str:
    return f"at most {planned} iterations" if given is None else f"{planned} iterations"
