"""State of a run, from its ledger alone: without the volumes, the solver, or Dask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bigdeconv.storage.journal_summary import JournalSummary
from bigdeconv.storage.ledger import Ledger

if TYPE_CHECKING:
    from pathlib import Path


def status(output: str | Path) -> dict[str, Any]:
    """Return the state of a run, ``running``, ``interrupted``, ``incomplete`` or ``complete``, and its numbers of blocks.

    Parameters
    ----------
    output : str or Path
        Output of the run.

    Raises
    ------
    StoreError
        If it has no ledger, or plan or journal are damaged.
    """
    ledger = Ledger.open(output)
    # The lock before the journal: a driver that ends in between has written everything that is read.
    is_running = ledger.lock.is_held()
    blocks = ledger.sound_plan()["blocks"]
    journal = JournalSummary(blocks["total"], blocks["outside"])
    journal.read(ledger.journal)
    return {"output": str(output), **status_of(journal, is_running=is_running)}


def status_of(journal: JournalSummary, *, is_running: bool) -> dict[str, Any]:
    """Return the state of a run and its numbers of blocks.

    Parameters
    ----------
    journal : JournalSummary
    is_running : bool
        Whether a driver is writing.
    """
    return {
        "state": state_of(journal, is_running=is_running),
        "blocks_total": journal.n_blocks,
        "blocks_done": journal.blocks_finished,
        "blocks_skipped": journal.blocks_skipped,
        "blocks_failed": journal.blocks_failed,
        "failures": list(journal.failures.values()),
    }


def state_of(journal: JournalSummary, *, is_running: bool) -> str:
    """Return ``running``, ``complete``, ``incomplete`` (closed with blocks missing) or ``interrupted``."""
    if is_running:
        return "running"
    if journal.complete:
        return "complete"
    return "incomplete" if journal.closed else "interrupted"
