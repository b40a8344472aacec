"""Comparison of an output with its journal: what was written is known, file by file."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from bigdeconv.errors import StoreError
from bigdeconv.geometry import Box, triple
from bigdeconv.jobs import record as records
from bigdeconv.jobs.open_run import OpenRun
from bigdeconv.jobs.output_metadata import output_specs
from bigdeconv.numerics.blending import DIRECTIONS
from bigdeconv.planning.blocks import BlockSequence
from bigdeconv.storage import absent
from bigdeconv.storage.collection import create_outputs
from bigdeconv.storage.ledger import Ledger
from bigdeconv.storage.locations import reported
from bigdeconv.storage.written_files import FIRST_BLOCK, LEVEL_PASS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

LOGGER = logging.getLogger(__name__)
ARRAY_KEYS = (
    "node_type",
    "shape",
    "data_type",
    "dtype",
    "fill_value",
    "chunk_grid",
    "chunks",
    "chunk_key_encoding",
    "order",
)
"""Keys that decide the places of voxels and the value of absent ones, in both formats."""

FORGOTTEN_AT_ONCE = 100_000
"""Records that are looked up in one pass over the journal."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Files that the journal names and that are not there, and files that are there and nobody wrote."""

    blocks: frozenset[int] = frozenset()
    """Indices of the blocks whose files are missing or changed, or that have to be computed again with them."""
    levels: frozenset[tuple[int, int]] = frozenset()
    """Volume and number of coarse levels in the same case."""
    problems: tuple[str, ...] = ()
    """One sentence per file, up to a limit."""
    foreign: tuple[Path, ...] = ()
    """Files with voxels that the journal does not know; looked for in finished runs only."""
    appeared: dict[int, list[absent.Range]] = field(default_factory=dict)
    """Files of the input that were absent and are there now, by the number of the volume."""

    def __bool__(self) -> bool:
        return bool(self.blocks or self.levels or self.foreign)

    def and_(self, other: Damage) -> Damage:
        """Return both together."""
        return Damage(
            self.blocks | other.blocks,
            self.levels | other.levels,
            self.problems + other.problems,
            self.foreign + other.foreign,
            self.appeared | other.appeared,
        )

    @property
    def text(self) -> str:
        """Blocks and levels to compute again, in words."""
        parts = [f"{len(self.blocks)} blocks"] if self.blocks else []
        parts += [f"{len(self.levels)} coarse levels"] if self.levels else []
        first = f" ({self.problems[0]}{', …' if len(self.problems) > 1 else ''})" if self.problems else ""
        again = f"{' and '.join(parts)} are computed again" if parts else "they are removed"
        return f"Not everything is as it was{first}: {again}."


def open_checked(output: str | Path, *, reads: bool) -> tuple[OpenRun, Damage]:
    """Open the run of an output, and compare the files of the output with its journal.

    Names and lengths are compared; contents too where a file was touched after the last line of the journal.

    Parameters
    ----------
    output : str or Path
    reads : bool
        Compare all contents and read every line of the journal; look for files that nobody wrote too.

    Raises
    ------
    StoreError
        If there is no ledger, or plan or journal are damaged.
    """
    run = OpenRun.open(output, with_files=True, every_line=reads)
    written = run.journal.written
    assert written is not None
    folders = run.record.facts.images.outputs(run.output)
    with reported("compare", str(run.output)):
        found = written.compare(folders, reads=reads, since_ns=run.ledger.journal.written_ns)
    foreign: list[Path] = []
    if reads and run.state == "complete":
        places = [written.place(int(number)) for number in found.foreign]
        foreign = [folders[volume] / name for volume, _, name in places]
    problems = [*found.problems, *(f"{path.relative_to(run.output)} is no file of this run" for path in foreign)]
    return run, replace(_damage(run, found.damaged), problems=tuple(problems), foreign=tuple(foreign))


def overwritten(run: OpenRun) -> Damage:
    """Return the blocks and levels that took more than one attempt and have other contents now than the last one wrote.

    A worker that was stopped just before a file appeared may go on when another attempt has long been noted.
    """
    journal, folders = run.journal, run.record.facts.images.outputs(run.output)
    if journal.written is None or not (journal.retried or journal.retried_levels):
        return Damage()
    writers = (FIRST_BLOCK + index for index in journal.retried)
    found = journal.written.changed(folders, writers, journal.retried_levels)
    return replace(_damage(run, found.damaged), problems=tuple(found.problems))


def _damage(run: OpenRun, files: np.ndarray) -> Damage:
    """Return the blocks and levels that wrote some files, and the levels above them."""
    written = run.journal.written
    assert written is not None
    writers = written.writer[files]
    blocks = frozenset((writers[writers >= FIRST_BLOCK] - FIRST_BLOCK).tolist())
    levels = {written.place(number)[:2] for number in files[writers == LEVEL_PASS].tolist()}
    return Damage(blocks, _above(run, blocks, levels))


def forget(run: OpenRun, damage: Damage) -> None:
    """Note in the journal that damaged blocks and levels are to be made again, and remove what is left of them."""
    folders = run.record.facts.images.outputs(run.output)
    blocks = sorted(damage.blocks)
    for start in range(0, len(blocks), FORGOTTEN_AT_ONCE):
        wanted = frozenset(blocks[start : start + FORGOTTEN_AT_ONCE])
        for index, record in _records_of(run, wanted).items():
            _forget(run, record, folders[run.journal.volume_of(index)])
    for volume, level in sorted(damage.levels):
        _forget(run, _record_of_level(run, volume, level), folders[volume])
    for volume, ranges in damage.appeared.items():
        run.append({"present": ranges, "volume": volume})
    for path in damage.foreign:
        _remove(path)


def _forget(run: OpenRun, record: dict[str, Any], folder: Path) -> None:
    run.append({"forgotten": record})
    for name, *_ in record.get("files", ()):
        _remove(folder / name)


def _records_of(run: OpenRun, blocks: frozenset[int]) -> dict[int, dict[str, Any]]:
    """Return the records of finished blocks, in one pass over the journal."""
    found: dict[int, dict[str, Any]] = {}
    for record, _ in run.ledger.journal.records():
        if (index := record.get("block")) in blocks:
            found.setdefault(index, record)
        elif "forgotten" in record:
            found.pop(record["forgotten"].get("block"), None)
    return found


def _record_of_level(run: OpenRun, volume: int, level: int) -> dict[str, Any]:
    wanted = {"volume": volume, "level": level}
    records = (record for record, _ in run.ledger.journal.records() if record.items() >= wanted.items())
    return next(reversed(list(records)), wanted)


def read_too_early(run: OpenRun) -> Damage:
    """Return the blocks that read files of the input as fill which are there now, and the neighbours that took in their slabs."""
    blocks = BlockSequence(run.record.facts.plans)
    wanted: set[int] = set()
    problems: list[str] = []
    appeared: dict[int, list[absent.Range]] = {}
    for v, info in enumerate(run.record.facts.volumes):
        numbers: list[int] = []
        try:
            for batch in run.journal.absent.batches(v):
                numbers += batch[absent.are_there(info, batch)].tolist()
        except StoreError as error:  # an input that was archived, or is away just now
            LOGGER.warning("absent files of the input could not be looked for again: %s", error)
        if not numbers:
            continue
        appeared[v] = absent.as_ranges(numbers)
        problems.append(f"{absent.name_of(info, numbers[0])} of the input was absent, and is there now")
        problems += [f"{len(numbers) - 1} files more of {info.location} were"] if len(numbers) > 1 else []
        for number in numbers:
            for index in _readers(blocks, v, absent.region_of(info, number)):
                wanted |= {index, *_upper_neighbours(run, blocks, index)}
    found = frozenset(index for index in wanted if run.journal.finished[index])
    return Damage(found, _above(run, found, set()), tuple(problems), appeared=appeared)


def absent_by_volume(run: OpenRun) -> dict[int, int]:
    """Return how many files of the input were absent when they were read, by the number of the volume."""
    counts = {volume: run.journal.absent.count(volume) for volume in range(len(run.record.facts.volumes))}
    return {volume: count for volume, count in counts.items() if count}


def _readers(blocks: BlockSequence, volume: int, region: dict[str, range]) -> Iterator[int]:
    """Yield the blocks of a volume whose data windows reach into a region of the input."""
    plan = blocks.plans[volume]
    spans = [region.get(axis, range(1)) for axis in "zyx"]
    box = Box(triple(span.start for span in spans), triple(span.stop for span in spans))
    positions = list(plan.readers(box))
    for t, timepoint in enumerate(plan.timepoints):
        for c, channel in enumerate(plan.channels):
            if timepoint in region.get("t", range(timepoint, timepoint + 1)) and channel in region.get(
                "c", range(channel, channel + 1)
            ):
                for position in positions:
                    yield blocks.first(volume) + plan.index(t * len(plan.channels) + c, position)


def _upper_neighbours(run: OpenRun, blocks: BlockSequence, index: int) -> Iterator[int]:
    task = blocks.task(index)
    plan = run.record.facts.plans[task.volume]
    if plan.has_overlaps:
        for direction in DIRECTIONS:
            neighbour = plan.neighbour(task, direction)
            if neighbour is not None:
                yield neighbour


def mend_journal(output: Path) -> int:
    """Remove damaged lines from the journal of an output; return how many there were."""
    ledger = Ledger.open(output)
    records.load(ledger)  # refuses a plan that has changed, or is of another schema
    with reported("write", str(ledger.path)):
        ledger.journal.create()
        ledger.lock.create()
    with ledger.writing():
        return ledger.journal.mend()


def restore_metadata(run: OpenRun) -> list[str]:
    """Make metadata of the output again that are missing, no JSON, or describe other arrays; return the names of the files.

    Others stay as they are, with what a user may have changed in them.
    """
    if not run.output.exists():
        return []
    model = run.output.with_name(f".{run.output.name}.{uuid4().hex[:12]}.metadata")
    try:
        create_outputs(model, run.record.facts.images, output_specs(run.record))
        mended = []
        with reported("restore metadata of", str(run.output)):
            for source in sorted(path for path in model.rglob("*") if path.is_file()):
                name = source.relative_to(model)
                if not _describes(_json_of(run.output / name), json.loads(source.read_text())):
                    _remove(run.output / name)
                    (run.output / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, run.output / name)
                    mended.append(str(name))
        return mended
    finally:
        shutil.rmtree(model, ignore_errors=True)


def _describes(found: Any, model: dict[str, Any]) -> bool:
    """Tell whether a metadata file describes the same arrays, or the same images, as the one that was written."""
    if not isinstance(found, dict) or any(found.get(name) != model.get(name) for name in ARRAY_KEYS):
        return False
    owner, wanted = (part.get("attributes", part) for part in (found, model))
    for keys in (("ome", "multiscales"), ("ome", "plate"), ("ome", "well"), ("multiscales",), ("plate",), ("well",)):
        if (value := _at(wanted, keys)) is not None and _layout(_at(owner, keys)) != _layout(value):
            return False
    return True


def _at(values: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _layout(described: Any) -> Any:
    """Return which arrays and axes the metadata of an image name: a registration may have edited transformations since."""
    if not isinstance(described, list):
        return type(described)
    return [[_names(image, "axes", "name"), _names(image, "datasets", "path")] for image in described]


def _names(owner: Any, key: str, inner: str) -> list[Any] | None:
    entries = owner.get(key) if isinstance(owner, dict) else None
    return [e.get(inner) if isinstance(e, dict) else None for e in entries] if isinstance(entries, list) else None


def _above(run: OpenRun, blocks: frozenset[int], levels: set[tuple[int, int]]) -> frozenset[tuple[int, int]]:
    """Return damaged levels, and the coarser ones that were made from damaged blocks or levels."""
    finest = dict(sorted(levels, reverse=True)) | {run.journal.volume_of(index): 0 for index in blocks}
    coarser = {(volume, level) for volume, level in run.journal.levels if level > finest.get(volume, level)}
    return frozenset(levels | coarser)


def _remove(path: Path) -> None:
    """Remove a file, or a folder that stands in its place."""
    with reported("remove", str(path)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _json_of(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
