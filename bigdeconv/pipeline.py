"""Run a job, resume it, tell where it stands."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bigdeconv import document as documents
from bigdeconv import guards, probes
from bigdeconv import job as jobs
from bigdeconv import report as reports
from bigdeconv.engine.cluster import Connection, LocalWorkers, connect, install, require_memory, uninstall
from bigdeconv.engine.schedule import Progress, run_blocks, run_probes, run_pyramid
from bigdeconv.errors import StoreError
from bigdeconv.storage import collection
from bigdeconv.storage.arrays import sweep_partial
from bigdeconv.storage.ledger import Ledger, ledger_path
from bigdeconv.summary import Summary, Tally, summarise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bigdeconv.config import JobConfig
    from bigdeconv.document import Document
    from bigdeconv.engine.recipe import Recipe
    from bigdeconv.job import Job, Outline


@dataclass(slots=True)
class Events:
    """What a caller may want to hear about while a run goes on; every default does nothing."""

    planned: Callable[[Outline], None] = lambda _: None
    warned: Callable[[str], None] = lambda _: None
    connected: Callable[[str], None] = lambda _: None
    """The dashboard's address."""
    progressed: Callable[[Progress], None] = lambda _: None
    phase: Callable[[str], None] = lambda _: None


def plan(config: JobConfig, tczyx_shape: tuple[int, ...] | None = None) -> Outline:
    """Plan a job without reading a voxel or writing anything but the cache of halos and costs.

    Parameters
    ----------
    tczyx_shape
        Extent of a volume that does not exist yet: ``config.input`` is not read then, and a PSF may be left out.

    Raises
    ------
    BigdeconvError
        If the input or a setting does not fit.
    """
    return jobs.inspect(config, tczyx_shape)


def run(config: JobConfig, *, resume: bool = False, overwrite: bool = False, events: Events | None = None) -> Summary:
    """Deconvolve a volume.

    Parameters
    ----------
    resume
        Go on with an unfinished output of the same job.
    overwrite
        Replace an existing output, once everything else has been found in order.

    Raises
    ------
    OutputExistsError
        If the output exists and neither is asked for.
    BigdeconvError
        If the input or a setting does not fit; then nothing has been written.
    ClusterLostError
        If the workers went away; what is finished stays finished.
    """
    events = events or Events()
    output = guards.local_output(config.output)
    goes_on = resume and ledger_path(output).exists()
    guards.require_writable(output)
    if not overwrite and not goes_on:
        guards.require_free(output, asked_to_resume=resume)
    with _stopping_on_termination():
        outline = jobs.inspect(config)
        if overwrite:
            guards.require_replaceable(output, jobs.locations_read(outline))
        job = jobs.prepare(outline)
        events.planned(job.outline)
        for warning in job.warnings:
            events.warned(warning)
        document = documents.from_job(job)
        if goes_on:
            guards.require_same_job(documents.load(Ledger.open(output)).identity, document.identity)
            return _go_on(output, events, scheduler=config.scheduler)
        # The cluster first: nothing is removed or made for a run that has nobody to run on.
        with connect(config.scheduler, _workers_of(document)) as connection:
            require_memory(connection, document.peak_bytes_per_worker)
            if overwrite:
                guards.remove(output)
            _start_ledger(output, job, document)
            return _execute(output, events, connection)


def resume(output: str | Path, *, scheduler: str | None = None, events: Events | None = None) -> Summary:
    """Go on with an interrupted run, from its stored plan alone.

    Raises
    ------
    StoreError
        If there is no ledger, another run is writing, or the input is not the one that was planned.
    """
    with _stopping_on_termination():
        return _go_on(guards.local_output(str(output)), events or Events(), scheduler=scheduler)


def status(output: str | Path) -> dict[str, Any]:
    """Tell how far a run is: blocks and a state, ``running``, ``interrupted``, ``incomplete`` or ``complete``."""
    ledger = Ledger.open(output)
    document = documents.load(ledger)
    progress = Progress(document.n_blocks, document.blocks_outside, document.blocks_outside)
    failed, complete, closed = 0, False, False
    for record in ledger.records():
        if "block" in record:
            progress.blocks_finished += 1
            progress.blocks_skipped += bool(record.get("skipped"))
            closed = False
        elif "complete" in record:
            complete, failed, closed = record["complete"], record["failed"], True
    resting = "complete" if complete else "incomplete" if closed else "interrupted"
    state = "running" if ledger.is_being_written() else resting
    return {
        "output": str(output),
        "state": state,
        "blocks_total": progress.blocks_total,
        "blocks_done": progress.blocks_finished,
        "blocks_skipped": progress.blocks_skipped,
        "blocks_failed": failed if closed else 0,
    }


def validate(output: str | Path, *, deep: bool = False) -> list[str]:
    """Check an OME-Zarr image, plate or folder of images; return one sentence per problem, none if it is valid."""
    return collection.validate(output, deep=deep)


def report(output: str | Path, *, probes_count: int | None = None) -> dict[str, Any]:
    """Tell what a run did, and write it beside its ledger as ``report.json`` and ``report.html``.

    Parameters
    ----------
    probes_count
        How many seams are solved again now, on workers of this machine; None to take what the run has found, or to do what
        its settings say where it has not.

    Raises
    ------
    StoreError
        If there is no ledger, or seams are to be solved again and the input has changed.
    """
    output = guards.local_output(str(output))
    ledger = Ledger.open(output)
    document = documents.load(ledger)
    progress = status(output)
    found = ledger.certificate()
    if progress["state"] == "complete" and (found is None or probes_count is not None):
        found = _probe_again(output, ledger, document, probes_count) or found
    values = reports.values_of(document, progress, found, ledger.records())
    shown = document.images.outputs(output)[0]
    images = reports.pictures(document.volume, shown, document.plan, document.config.views_axis)
    ledger.write_json("report", values)
    (ledger.path / "report.html").write_text(reports.to_html(values, images), encoding="utf-8")
    return values


def _probe_again(output: Path, ledger: Ledger, document: Document, count: int | None) -> dict[str, Any] | None:
    count = document.config.seam_probes if count is None else count
    if not _seams_to_probe(ledger, document, count):
        return None
    guards.require_same_numbers(document)
    with ledger.writing(), connect(None, _workers_of(document)) as connection:
        recipes = documents.make_recipes(document, ledger, output, threads=document.threads)
        install(connection.client, recipes)
        found, _ = _certify(connection, recipes, ledger, document, count)
        uninstall(connection.client, recipes)
    return found


def _go_on(output: Path, events: Events, *, scheduler: str | None) -> Summary:
    """Do what the ledger says is left to do; nothing is started if nothing is left."""
    ledger = Ledger.open(output)
    guards.require_idle(output)
    document = documents.load(ledger)
    tally = Tally.of(ledger.records(), document.blocks_outside)
    if not output.exists() and tally.blocks > document.blocks_outside:
        raise StoreError(
            f"output: {str(output)!r} is gone though its ledger has finished blocks; start anew with --overwrite."
        )
    if tally.complete:
        done = Progress(document.n_blocks, tally.blocks, tally.skipped)
        summary = summarise(output, done, tally, document.warnings)
        _add_certificate(summary, ledger.certificate(), [])
        return summary
    guards.require_same_numbers(document)
    with connect(scheduler, _workers_of(document)) as connection:
        require_memory(connection, document.peak_bytes_per_worker)
        return _execute(output, events, connection)


def _execute(output: Path, events: Events, connection: Connection) -> Summary:
    """Compute the blocks and levels that the journal does not have."""
    started = time.monotonic()
    ledger = Ledger.open(output)
    with ledger.writing():
        document = documents.load(ledger)
        _ensure_output(output, document)
        threads = document.threads if connection.is_local else None
        recipes = documents.make_recipes(document, ledger, output, threads=threads)
        tally = Tally.of(ledger.records(), document.blocks_outside)

        def on_finished(record: dict[str, Any], progress: Progress) -> None:
            ledger.append(record)
            tally.add(record)
            events.progressed(progress)

        install(connection.client, recipes)
        events.connected(connection.dashboard)
        events.phase("blocks")
        finished = (r for r in ledger.records() if "block" in r)
        outside = documents.outside_of(document, ledger)
        progress = run_blocks(connection, recipes, outside, finished, on_finished)
        if progress.blocks_finished == progress.blocks_total:
            progress.errors += _finish_levels(connection, recipes, ledger, tally, events)
        summary = summarise(output, progress, tally, document.warnings)
        if summary.complete:
            ledger.drop_scratch()
            summary.errors += validate(output)
        if summary.complete:
            events.phase("seams")
            _add_certificate(summary, *_certify(connection, recipes, ledger, document, document.config.seam_probes))
        uninstall(connection.client, recipes)
        summary.seconds = round(time.monotonic() - started, 2)
        closing = {"complete": summary.complete, "failed": progress.blocks_failed, "counts": summary.counts}
        ledger.append({**closing, "seconds": summary.seconds})
    return summary


def _finish_levels(
    connection: Connection, recipes: tuple[Recipe, ...], ledger: Ledger, tally: Tally, events: Events
) -> list[str]:
    """Make the levels that no core determines alone, each from the one before; return what failed."""
    for v, recipe in enumerate(recipes):
        for n, level in enumerate(recipe.plan.levels):
            if level.in_task or (v, n) in tally.levels:
                continue
            events.phase(f"level {n}" + (f" of {recipe.volume.name}" if len(recipes) > 1 else ""))
            if errors := run_pyramid(connection, recipe, v, n):
                return errors
            ledger.append({"volume": v, "level": n})
    return []


def _certify(
    connection: Connection, recipes: tuple[Recipe, ...], ledger: Ledger, document: Document, count: int
) -> tuple[dict[str, Any] | None, list[str]]:
    """Solve some seams of a finished run again and store what that finds; return it with what failed."""
    chosen = _seams_to_probe(ledger, document, count)
    if not chosen:
        return None, []
    measured, errors = run_probes(connection, recipes[0].token, chosen)
    found = probes.certificate(document.plans, document.config.seam_tolerance, measured)
    ledger.write_json("certificate", found)
    return found, errors


def _seams_to_probe(ledger: Ledger, document: Document, count: int) -> list[probes.SeamProbe]:
    outside = documents.outside_of(document, ledger)
    return probes.choose(document.plans, count, document.digest, None if outside is None else outside.tobytes())


def _add_certificate(summary: Summary, found: dict[str, Any] | None, errors: list[str]) -> None:
    summary.seams = found
    summary.warnings += [*errors, *probes.warnings(found)]


def _workers_of(document: Document) -> LocalWorkers:
    return LocalWorkers(document.workers, document.threads, document.cuda)


def _start_ledger(output: Path, job: Job, document: Document) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    Ledger.create(output, documents.dump(document), documents.arrays_of(job), job.outline.model)


def _ensure_output(output: Path, document: Document) -> None:
    """Make the outputs' arrays and metadata, unless an interrupted run has; sweep what it left half-written."""
    if output.exists():
        sweep_partial(output)
    else:
        collection.create_outputs(output, document.images, documents.output_specs(document))


@contextmanager
def _stopping_on_termination() -> Iterator[None]:
    """Treat SIGTERM, which batch systems send before they kill, like Ctrl-C: stop in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
