"""Run a job, resume it, report on it: the functions behind the command line."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bigdeconv.config import JobConfig, make_config
from bigdeconv.engine.clusters.connection import connect, cuda_devices, gpus, kernel_problems, memory_limits
from bigdeconv.engine.plugins import installed
from bigdeconv.engine.recipe import ChannelNumbers
from bigdeconv.engine.schedule import Progress, run_blocks, run_probes, run_pyramid
from bigdeconv.errors import BigdeconvError, OutputExistsError, StoreError
from bigdeconv.jobs import preconditions
from bigdeconv.jobs.facts import JobPlan
from bigdeconv.jobs.integrity import (
    Damage,
    forget,
    mend_journal,
    open_checked,
    overwritten,
    read_too_early,
    restore_metadata,
)
from bigdeconv.jobs.job import calibrate_job, locations_read, plan_job, sample_digests, tune_job
from bigdeconv.jobs.open_run import OpenRun
from bigdeconv.jobs.output_metadata import output_specs
from bigdeconv.jobs.record import identity_of, input_digest, record_of
from bigdeconv.jobs.resources import find_resources, local_workers
from bigdeconv.jobs.run_log import logged_to
from bigdeconv.jobs.space import require_space
from bigdeconv.planning import seam_probes
from bigdeconv.planning.resources import Resources
from bigdeconv.reporting import certificate, contact_sheet, figures, html
from bigdeconv.reporting.certificate import verdict as seam_verdict
from bigdeconv.reporting.plan_values import plan_values
from bigdeconv.reporting.status import RunSummary, summarise
from bigdeconv.reporting.values import report_values
from bigdeconv.storage import collection
from bigdeconv.storage.arrays import sweep_partial
from bigdeconv.storage.ledger import ledger_path
from bigdeconv.storage.locations import is_remote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bigdeconv.calibration.tuning import Tuning
    from bigdeconv.engine.clusters.connection import Connection
    from bigdeconv.engine.recipe import Recipe
    from bigdeconv.jobs.facts import JobFacts

__all__ = [
    "ChannelNumbers",
    "Events",
    "JobPlan",
    "Progress",
    "RunSummary",
    "ledger_path",
    "plan",
    "plan_values",
    "repair",
    "report",
    "resume",
    "run",
    "seam_verdict",
    "tune",
    "validate",
]
LOGGER = logging.getLogger(__name__)
MAX_ROUNDS = 3
"""Times that blocks are computed again because files of the input appeared that were absent before."""
NO_OUTPUT = "unwritten.zarr"
"""Output of a plan for which none is given."""


@dataclass(slots=True)
class Events:
    """Functions to call while a run goes on; by default they do nothing."""

    planned: Callable[[JobPlan], None] = lambda _: None
    chosen: Callable[[str], None] = lambda _: None
    """Called with the result of each choice before the first block, in words."""
    calibrated: Callable[[int, ChannelNumbers], None] = lambda *_: None
    """Called with the number of each channel and the numbers that its blocks share."""
    warned: Callable[[str], None] = lambda _: None
    connected: Callable[[str], None] = lambda _: None
    """Called with the address of the dashboard."""
    progressed: Callable[[Progress], None] = lambda _: None
    """Called after each block."""
    phase: Callable[[str], None] = lambda _: None
    """Called with ``calibration``, ``blocks``, ``level N`` or ``seams`` when it begins."""


def plan(config: JobConfig | None = None, tczyx_shape: tuple[int, ...] | None = None, **settings: Any) -> JobPlan:
    """Plan a job.  No voxel is read; only the cache of halos and costs is written.

    Parameters
    ----------
    config : JobConfig, optional
        Settings; or give them as keywords.
    tczyx_shape : tuple of int, optional
        Extent of a volume that does not exist yet: ``input`` is not read then, and a PSF may be left out.
    **settings : Any
        Settings by name, see `JobConfig`.

    Raises
    ------
    BigdeconvError
        If the input or a setting cannot be used.

    Examples
    --------
    >>> import bigdeconv
    >>> job = bigdeconv.plan(
    ...     input="unread.zarr", method="rl", tczyx_shape=(1, 1, 64, 256, 256), block_shape="64,128,128"
    ... )
    >>> job.facts.n_blocks
    4
    """
    if config is None:
        settings.setdefault("output", NO_OUTPUT)
    return plan_job(_config(config, settings), tczyx_shape)


def run(
    config: JobConfig | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    events: Events | None = None,
    **settings: Any,
) -> RunSummary:
    """Deconvolve one or several volumes: ``run(input="in.zarr", output="out.zarr", psf="psf.tif")``.

    Workers of this machine import the script that calls this, so there it stands below ``if __name__ == "__main__":``.

    Parameters
    ----------
    config : JobConfig, optional
        Settings; or give them as keywords.
    resume : bool
        Continue an unfinished output of the same job.
    overwrite : bool
        Replace an existing output, once everything else has been checked.
    force : bool
        Begin though the disk is likely to fill up.
    events : Events, optional
        Functions to call while the run goes on.
    **settings : Any
        Settings by name, see `JobConfig`.

    Returns
    -------
    RunSummary
        ``complete`` tells whether every block is written.

    Raises
    ------
    OutputExistsError
        If the output exists and neither ``resume`` nor ``overwrite`` is given.
    BigdeconvError
        If the input or a setting cannot be used; then nothing has been written.
    ClusterLostError
        If the workers went away; finished blocks stay finished.
    """
    preconditions.require_guarded_script()
    config, events = _config(config, settings), events or Events()
    output = preconditions.local_output(config.output)
    continues = resume and ledger_path(output).exists()
    preconditions.require_writable(output)
    if not overwrite and not continues:
        preconditions.require_free(output, asked_to_resume=resume)
    with _stopping_on_termination():
        job_plan = plan_job(config, resources=_resources(config))
        if overwrite:
            preconditions.require_replaceable(output, locations_read(job_plan.facts))
        events.planned(job_plan)
        if continues:
            preconditions.require_idle(output)
            stored, damage = open_checked(output, reads=False)
            identity = identity_of(job_plan, sample_digests(job_plan.facts, job_plan.n_views))
            preconditions.require_same_job(stored.record.identity, identity)
            return _continue(stored, damage, events, scheduler=config.scheduler)
        events.phase("calibration")
        job = calibrate_job(job_plan, events.chosen)
        preconditions.require_fitting_psf(job)
        record = record_of(job)
        specs = output_specs(record)
        collection.check_specs(specs)
        for number, numbers in record.channels.items():
            events.calibrated(number, numbers)
        for warning in record.warnings:
            events.warned(warning)
        for warning in require_space(job, output, force=force):
            events.warned(warning)
        # The cluster first: without one nothing is removed or made.
        with _checked_connection(config.scheduler, job.plan.facts, events) as connection:
            if overwrite:
                preconditions.remove(output)
            return _execute(OpenRun.create(output, job, record), events, connection)


def tune(
    config: JobConfig | None = None,
    folder: str | Path = "tuning",
    *,
    on_step: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> dict[str, Any]:
    """Try methods and settings side by side on parts of a volume; write a contact sheet, the numbers and a job file.

    Parameters
    ----------
    config : JobConfig, optional
        Settings; or give them as keywords.  With ``roi`` the parts lie in that region.
    folder : str or Path
        Folder to be made: ``sheet-cN.png`` per channel, ``scores.json`` and ``job.yaml`` for ``run --config``.
    on_step : callable
        Called with each result, in words.
    **settings : Any
        Settings by name, see `JobConfig`.

    Returns
    -------
    dict
        What ``scores.json`` holds: numbers of each channel, and the paths of the files.

    Raises
    ------
    BigdeconvError
        If the input or a setting cannot be used, or the folder exists; then nothing has been written.
    """
    if config is None:
        settings.setdefault("output", NO_OUTPUT)
    config = _config(config, settings)
    contact_sheet.require_plotting()
    place = Path(folder)
    if place.exists():
        raise OutputExistsError(f"folder: {str(place)!r} exists; name another one, or remove it.")
    # The plan serves the samples, the PSFs and the learned prior; its blocks are not used.
    job_plan = plan_job(config.model_copy(update={"method": "garl"}))
    found = tune_job(job_plan, on_step)
    facts = job_plan.facts
    place.mkdir(parents=True)
    sheets = [place / f"sheet-c{result.channel}.png" for result in found]
    for sheet, result in zip(sheets, found, strict=True):
        contact_sheet.write_contact_sheet(sheet, result, facts.first_volume.voxel_zyx_um)
    job = place / "job.yaml"
    job.write_text(yaml.safe_dump(_tuned_settings(config, found[0]), sort_keys=False))
    values = {"channels": [r.values for r in found], "sheets": [str(s) for s in sheets], "job": str(job)}
    (place / "scores.json").write_text(json.dumps(values, indent=1))
    return values


def _tuned_settings(config: JobConfig, found: Tuning) -> dict[str, Any]:
    """Return the settings of a job with the best candidate of a channel; places are left to the command line."""
    given = config.model_dump(mode="json", exclude_unset=True, exclude={"input", "output", "roi", "schema_version"})
    chosen = found.best.settings
    tuned: dict[str, Any] = {"method": chosen.method, "iterations": chosen.iterations}
    if chosen.method != "rl":
        tuned["tau"] = chosen.tau
    if chosen.method == "garl":
        tuned["sigma"] = chosen.sigma
    if found.psf_scale_is_told and config.psf_scale is None:
        tuned["psf_scale"] = [found.psf_scale] * 3
    # A strength goes with the scale that it was found at.
    tuned["intensity_scale"] = chosen.intensity_scale / found.camera.gain
    return {**given, **tuned}


def resume(
    output: str | Path, *, scheduler: str | None = None, verify: bool = False, events: Events | None = None
) -> RunSummary:
    """Continue an interrupted run from its stored plan; finished blocks are not computed again.

    Blocks whose files are missing, or of another length than was written, count as unfinished.

    Parameters
    ----------
    output : str or Path
        Output of the run.
    scheduler : str, optional
        Running Dask cluster: address or scheduler file.
    verify : bool
        Compare the contents of all files with what was written, which reads the whole output.
    events : Events, optional
        Functions to call while the run goes on.

    Raises
    ------
    StoreError
        If there is no ledger, another run is writing, or the input has changed.
    """
    preconditions.require_guarded_script()
    with _stopping_on_termination():
        path = preconditions.local_output(str(output))
        preconditions.require_idle(path)
        events = events or Events()
        opened, damage = open_checked(path, reads=verify)
        if damage.foreign:
            events.warned(
                f"{damage.problems[-1]}, as {len(damage.foreign)} files are; `bigdeconv repair` removes them."
            )
        return _continue(opened, replace(damage, foreign=()), events, scheduler=scheduler)


def repair(output: str | Path, *, scheduler: str | None = None, events: Events | None = None) -> RunSummary:
    """Make the damaged parts of an output again, and finish it; everything else is kept.

    Every file is compared with what was written.  Blocks whose files or overlap slabs are missing or changed are computed again,
    with the same bytes, and so are the coarse levels above them.  Damaged lines of the journal and damaged metadata are replaced.

    Parameters
    ----------
    output : str or Path
        Output of a run, finished or not.
    scheduler : str, optional
        Running Dask cluster: address or scheduler file.
    events : Events, optional
        Functions to call while the work goes on.

    Raises
    ------
    StoreError
        If there is no ledger, its plan is damaged, another run is writing, or the input has changed.
    """
    preconditions.require_guarded_script()
    events = events or Events()
    with _stopping_on_termination():
        path = preconditions.local_output(str(output))
        preconditions.require_idle(path)
        damaged = mend_journal(path)
        if damaged:
            events.warned(f"{damaged} damaged lines of the journal were removed; their blocks are computed again.")
        opened, damage = open_checked(path, reads=True)
        if mended := restore_metadata(opened):
            events.warned(f"Metadata were missing or damaged and are made again: {', '.join(mended)}.")
        return _continue(opened, damage, events, scheduler=scheduler, may_begin_anew=True)


def validate(output: str | Path, *, deep: bool = False) -> list[str]:
    """Check an OME-Zarr image, plate or folder of images; return one sentence per problem, none if it is valid.

    Parameters
    ----------
    output : str or Path
        Path or URL.
    deep : bool
        Also decode every chunk, and compare every file with the journal where the output has a ledger.
    """
    problems = collection.validate(output, deep=deep)
    if deep and not is_remote(str(output)) and ledger_path(output).exists():
        try:
            problems += open_checked(output, reads=True)[1].problems
        except StoreError as error:
            problems.append(str(error))
    return problems


def report(output: str | Path, *, probes_count: int | None = None) -> dict[str, Any]:
    """Return what a run did, and write it beside its ledger as ``report.json`` and ``report.html``.

    Parameters
    ----------
    output : str or Path
        Output of the run.
    probes_count : int, optional
        Seams to solve again now, on workers of this machine.  Default: the stored certificate, or as many seams as the settings
        say where there is none.

    Raises
    ------
    StoreError
        If there is no ledger, or seams are to be solved again and the input has changed.
    """
    opened = OpenRun.open(preconditions.local_output(str(output)))
    found, errors = opened.ledger.certificate(), list[str]()
    if opened.state == "complete" and (found is None or probes_count is not None):
        again, errors = _probe_again(opened, probes_count)
        found = again or found
    facts, values = opened.record.facts, report_values(opened, found, errors)
    shown = facts.images.outputs(opened.output)[0]
    images = figures.pictures(facts.first_volume, shown, facts.plans[0], facts.config.views_axis)
    opened.ledger.write_json("report", values)
    opened.ledger.write_text("report.html", html.to_html(values, images))
    return values


def _config(config: JobConfig | None, settings: dict[str, Any]) -> JobConfig:
    """Return the settings, from a `JobConfig` or from keywords or from both."""
    if config is None:
        return make_config(settings)
    return make_config({**config.model_dump(exclude_unset=True), **settings}) if settings else config


def _probe_again(opened: OpenRun, count: int | None) -> tuple[dict[str, Any] | None, list[str]]:
    """Solve seams again on this machine; return the certificate, None if none was measured, and what failed."""
    count = opened.record.facts.config.seam_probes if count is None else count
    if not count or not _seams_to_probe(opened, count):
        return None, []
    preconditions.require_same_numbers(opened.record)
    facts = opened.record.facts
    with opened.writing(), logged_to(opened.ledger.log_path), _checked_connection(None, facts, Events()) as connection:
        recipes = opened.recipes(threads=facts.resources.threads)
        with installed(connection.client, recipes):
            return _certify(connection, recipes, opened, count)


def _continue(
    opened: OpenRun, damage: Damage, events: Events, *, scheduler: str | None, may_begin_anew: bool = False
) -> RunSummary:
    """Compute what the journal does not have, and what it has and the output has not; start nothing if nothing is left."""
    output, facts = opened.output, opened.record.facts
    if not may_begin_anew and not output.exists() and opened.journal.blocks_finished > facts.blocks_outside:
        raise StoreError(
            f"output: {str(output)!r} is gone though its ledger has finished blocks; bring it back, or compute everything again "
            "with `bigdeconv repair`."
        )
    damage = damage.and_(read_too_early(opened))
    if opened.journal.complete and not (damage.blocks or damage.levels):
        if damage or damage.appeared:
            with opened.writing():
                _forget(opened, damage, events)
        summary = _complete_summary(opened)
        summary.errors += validate(output)
        return summary
    preconditions.require_same_numbers(opened.record)
    with _checked_connection(scheduler, facts, events) as connection:
        return _execute(opened, events, connection, damage)


def _complete_summary(opened: OpenRun) -> RunSummary:
    """Return the summary of a run with nothing left to do."""
    summary = summarise(opened)
    _add_certificate(summary, opened.ledger.certificate(), [])
    return summary


def _resources(config: JobConfig) -> Resources:
    """Return the workers of a job: of this machine, or of a running cluster, whose GPUs may be others."""
    if config.scheduler is None or config.device == "cpu":
        return find_resources(config)
    with connect(config.scheduler, Resources()) as connection:
        for_gpus = config.device == "cuda" or all(cuda_devices(connection).values())
        return find_resources(config, list(gpus(connection).values()) if for_gpus else [])


@contextmanager
def _checked_connection(scheduler: str | None, facts: JobFacts, events: Events) -> Iterator[Connection]:
    """Connect to a cluster whose workers have the memory and the device of the plan."""
    workers = local_workers(facts.resources) if scheduler is None else facts.resources
    with connect(scheduler, workers, serves_dashboard=facts.config.dashboard) as connection:
        for warning in preconditions.require_tls(connection.address, wanted=facts.config.require_tls):
            events.warned(warning)
        preconditions.require_memory(memory_limits(connection), facts.largest_plan.peak_bytes_per_worker)
        if facts.settings.device == "cuda":
            preconditions.require_gpus(gpus(connection), facts.largest_plan.peak_bytes_per_device)
            slow = kernel_problems(connection) if facts.settings.method == "garl" else {}
            told = preconditions.kernel_warnings(slow)
        else:
            told = [] if connection.is_local else preconditions.idle_gpus(cuda_devices(connection))
        for warning in told:
            events.warned(warning)
        yield connection


def _execute(opened: OpenRun, events: Events, connection: Connection, damage: Damage | None = None) -> RunSummary:
    """Compute the blocks and levels that the journal does not have, or whose files are damaged."""
    started = time.monotonic()
    facts = opened.record.facts
    with opened.writing(), logged_to(opened.ledger.log_path), _logging_the_end():
        if damage is not None:
            _forget(opened, damage, events)
        if damage:
            restore_metadata(opened)
        if opened.journal.complete:  # by another driver, since the run was opened
            return _complete_summary(opened)
        LOGGER.info(
            "%d of %d blocks to do with %s, %d iterations, on %s",
            facts.n_blocks - opened.journal.blocks_finished,
            facts.n_blocks,
            facts.settings.method,
            facts.settings.iterations,
            connection.dashboard,
        )
        for number, numbers in opened.record.channels.items():
            LOGGER.info("channel %d: %s", number, numbers.text)
        for warning in opened.record.warnings:
            LOGGER.warning("%s", warning)
        _ensure_output(opened)
        recipes = opened.recipes(threads=facts.resources.threads if connection.is_local else None)

        with installed(connection.client, recipes):
            events.connected(connection.dashboard)
            events.phase("blocks")
            progress = _compute(connection, recipes, opened, events)
            input_changed = _input_has_changed(opened)
            summary = summarise(opened, progress, input_changed=input_changed)
            if summary.complete:
                opened.ledger.drop_scratch()
                summary.errors += validate(opened.output)
            if summary.complete:
                if _seams_to_probe(opened, facts.config.seam_probes):
                    events.phase("seams")
                _add_certificate(summary, *_certify(connection, recipes, opened, facts.config.seam_probes))
            summary.seconds = round(time.monotonic() - started, 2)
            closing = {"complete": summary.complete, "counts": summary.counts, "seconds": summary.seconds}
            opened.append(closing | ({"input_changed": True} if input_changed else {}))
        LOGGER.info("%d of %d blocks done, %d failed", summary.blocks_done, summary.blocks_total, summary.blocks_failed)
    return summary


def _compute(connection: Connection, recipes: tuple[Recipe, ...], opened: OpenRun, events: Events) -> Progress:
    """Compute blocks and levels until nothing of what they were made from, and nothing that they wrote, has changed meanwhile."""
    facts = opened.record.facts

    def on_finished(record: dict[str, Any], progress: Progress) -> None:
        opened.append(record)
        events.progressed(progress)

    def on_failed(failure: dict[str, Any]) -> None:
        opened.append({"failure": failure})

    limit = facts.config.failures_allowed(facts.n_blocks)
    for _ in range(MAX_ROUNDS):
        progress = run_blocks(
            connection, recipes, opened.outside(), opened.journal, on_finished, on_failed, max_failures=limit
        )
        if progress.blocks_finished == progress.blocks_total:
            progress.errors += _finish_levels(connection, recipes, opened, events)
        if progress.blocks_finished < progress.blocks_total or progress.errors:
            return progress
        late = read_too_early(opened).and_(overwritten(opened))
        _forget(opened, late, events)
        if not late:
            return progress
        opened.ledger.drop_scratch()  # slabs may come from the same fill
    progress.errors.append(
        f"Files changed while they were written, {MAX_ROUNDS} times; does another program write here?"
    )
    return progress


def _input_has_changed(opened: OpenRun) -> bool:
    """Tell whether the samples, on which the numbers of the run rest, are others now; False where they cannot be read."""
    facts = opened.record.facts
    n_views = len(opened.ledger.arrays()[f"psf{facts.channels[0]}"])
    try:
        now = input_digest(facts, sample_digests(facts, n_views))
    except BigdeconvError as error:  # an input that was archived, or is away just now
        LOGGER.warning("the input could not be compared with itself: %s", error)
        return False
    return bool(now != opened.record.identity["input"])


def _forget(opened: OpenRun, damage: Damage, events: Events) -> None:
    """Say what is damaged, and have it computed again."""
    if damage:
        events.warned(damage.text)
        for problem in damage.problems:
            LOGGER.warning("%s", problem)
    forget(opened, damage)


def _finish_levels(connection: Connection, recipes: tuple[Recipe, ...], opened: OpenRun, events: Events) -> list[str]:
    """Make the levels that no core determines alone, each from the next finer one; return what failed."""
    for v, recipe in enumerate(recipes):
        for n, level in enumerate(recipe.plan.levels):
            if level.in_task or (v, n) in opened.journal.levels:
                continue
            events.phase(f"level {n}" + (f" of {recipe.volume.name}" if len(recipes) > 1 else ""))
            record, errors = run_pyramid(connection, recipe, v, n)
            if errors:
                return errors
            opened.append(record)
    return []


def _certify(
    connection: Connection, recipes: tuple[Recipe, ...], opened: OpenRun, count: int
) -> tuple[dict[str, Any] | None, list[str]]:
    """Solve some seams of a finished run again and store the certificate; return it with what failed."""
    chosen = _seams_to_probe(opened, count)
    if not chosen:
        return None, []
    measured, errors = run_probes(connection, recipes[0].token, chosen)
    if not measured:
        return None, errors
    facts = opened.record.facts
    found = certificate.certificate(facts.plans, facts.config.seam_tolerance, measured)
    opened.ledger.write_json("certificate", found)
    return found, errors


def _seams_to_probe(opened: OpenRun, count: int) -> list[seam_probes.SeamProbe]:
    outside, record = opened.outside(), opened.record
    return seam_probes.choose(record.facts.plans, count, record.digest, None if outside is None else outside.tobytes())


def _add_certificate(summary: RunSummary, found: dict[str, Any] | None, errors: list[str]) -> None:
    summary.seams = found
    warnings = [*errors, *certificate.warnings(found)]
    for warning in warnings:
        LOGGER.warning("%s", warning)
    summary.warnings += warnings


def _ensure_output(opened: OpenRun) -> None:
    """Make the outputs' arrays and metadata, unless an interrupted run has; remove what it left half-written."""
    if opened.output.exists():
        sweep_partial(opened.output)
    else:
        collection.create_outputs(opened.output, opened.record.facts.images, output_specs(opened.record))


@contextmanager
def _logging_the_end() -> Iterator[None]:
    """Write the reason to the log where a run ends early."""
    try:
        yield
    except KeyboardInterrupt:
        LOGGER.warning("interrupted")
        raise
    except Exception:
        LOGGER.exception("ended early")
        raise


@contextmanager
def _stopping_on_termination() -> Iterator[None]:
    """Treat SIGTERM, which batch systems send before they kill, and SIGHUP of a closed terminal like Ctrl-C: stop in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # Who starts a run with nohup wants it to outlive the terminal.
    wanted = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt) for number in wanted}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
