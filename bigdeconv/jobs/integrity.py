"""Comparison of an output with its journal: what was written is known, file by file."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from bigdeconv.errors import StoreError
from bigdeconv.geometry import ceil_div
from bigdeconv.jobs import record as records
from bigdeconv.jobs.open_run import OpenRun
from bigdeconv.jobs.output_metadata import output_specs
from bigdeconv.numerics.blending import DIRECTIONS
from bigdeconv.planning.blocks import BlockSequence
from bigdeconv.storage import absent
from bigdeconv.storage.collection import create_outputs
from bigdeconv.storage.ledger import Ledger
from bigdeconv.storage.locations import reported
from bigdeconv.storage.seals import FileMark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bigdeconv.storage.output import OutputSpec

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
"""What decides where the voxels of an array lie and what absent ones are, in both formats."""

_Key = tuple[str, int, int]
"""``("block", 0, index)`` or ``("level", volume, number)``."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What the journal says was written and is not there, and what is there and nobody wrote."""

    records: dict[_Key, dict[str, Any]]
    """Journal records of the blocks and levels whose files are missing or changed."""
    problems: list[str]
    """One sentence per file."""
    foreign: list[Path]
    """Files with voxels that the journal does not know; looked for in finished runs only."""

    def __bool__(self) -> bool:
        return bool(self.records or self.foreign)

    def and_(self, other: Damage) -> Damage:
        """Return both together."""
        return Damage(other.records | self.records, self.problems + other.problems, self.foreign + other.foreign)

    @property
    def text(self) -> str:
        """What is computed again, in words."""
        n_blocks = sum(kind == "block" for kind, *_ in self.records)
        n_levels = len(self.records) - n_blocks
        parts = [f"{n_blocks} blocks"] if n_blocks else []
        parts += [f"{n_levels} coarse levels"] if n_levels else []
        first = f" ({self.problems[0]}{', …' if len(self.problems) > 1 else ''})" if self.problems else ""
        again = f"{' and '.join(parts)} are computed again" if parts else "they are removed"
        return f"Not everything is as it was{first}: {again}."


def open_checked(output: str | Path, *, reads: bool) -> tuple[OpenRun, Damage]:
    """Open the run of an output, and compare the files of the output with its journal, which is read once.

    Parameters
    ----------
    output : str or Path
    reads : bool
        Compare contents too, and look for files that nobody wrote: reads the whole output.

    Raises
    ------
    StoreError
        If there is no ledger, or plan or journal are damaged.
    """
    checks: list[_Check] = []

    def observer(run: OpenRun) -> Callable[[dict[str, Any]], None]:
        checks.append(_Check(run, reads=reads))
        return checks[0].see

    run = OpenRun.open(output, observer)
    return run, checks[0].damage()


class _Check:
    """Comparison of files with the records of a journal, one by one."""

    def __init__(self, run: OpenRun, *, reads: bool) -> None:
        self._run, self._reads = run, reads
        self._folders = run.record.facts.images.outputs(run.output)
        self._blocks = BlockSequence(run.record.facts.plans)
        self._lost: dict[_Key, tuple[dict[str, Any], list[str]]] = {}
        """Records of blocks and levels with damaged files, and sentences about these."""
        self._written: dict[_Key, list[Path]] = {}
        """Files that were written, where contents are compared."""

    def see(self, record: dict[str, Any]) -> None:
        if (key := _key(record.get("forgotten", record))) is None:
            return
        self._lost.pop(key, None)
        self._written.pop(key, None)
        if "forgotten" in record:
            return
        folder = self._folders[self._blocks.task(key[2]).volume if key[0] == "block" else key[1]]
        marks = [FileMark(*entry) for entry in record.get("files", ())]
        if self._reads:
            self._written[key] = [folder / mark.name for mark in marks]
        found = [text for mark in marks if (text := mark.problem(folder, reads=self._reads)) is not None]
        if found:
            self._lost[key] = record, found

    def damage(self) -> Damage:
        records = {key: record for key, (record, _) in self._lost.items()}
        problems = [text for _, found in self._lost.values() for text in found]
        _spread(self._run, self._blocks, records)
        foreign: list[Path] = []
        if self._reads and self._run.state == "complete":
            written = {path for paths in self._written.values() for path in paths}
            for folder, spec in zip(self._folders, output_specs(self._run.record), strict=True):
                foreign += [path for path in _chunk_files(folder, spec) if path not in written]
            problems += [f"{path.relative_to(self._run.output)} is no file of this run" for path in foreign]
        return Damage(records, problems, foreign)


def forget(run: OpenRun, damage: Damage) -> None:
    """Note in the journal that damaged blocks and levels are to be made again, and remove what is left of them."""
    folders = run.record.facts.images.outputs(run.output)
    blocks = BlockSequence(run.record.facts.plans)
    for (kind, volume, number), record in damage.records.items():
        run.append({"forgotten": record})
        folder = folders[blocks.task(number).volume if kind == "block" else volume]
        for name, *_ in record.get("files", ()):
            _remove(folder / name)
    for path in damage.foreign:
        _remove(path)


def read_too_early(run: OpenRun) -> Damage:
    """Return the blocks that read files of the input as fill which are there now, and the neighbours that took in their slabs."""
    volumes = run.record.facts.volumes
    blocks = BlockSequence(run.record.facts.plans)
    wanted: set[int] = set()
    problems: list[str] = []
    for v, ranges in absent_by_volume(run).items():
        numbers = absent.numbers_in(ranges)
        try:
            there = absent.are_there(volumes[v], numbers)
        except StoreError as error:  # an input that was archived, or is away just now
            LOGGER.warning("absent files of the input could not be looked for again: %s", error)
            continue
        appeared = {number for number, found in zip(numbers, there, strict=True) if found}
        problems += [
            f"{absent.name_of(volumes[v], n)} of the input was absent, and is there now" for n in sorted(appeared)
        ]
        if not appeared:
            continue
        for index, read in run.journal.absent.items():
            if blocks.task(index).volume == v and not appeared.isdisjoint(absent.numbers_in(read)):
                wanted |= {index, *_upper_neighbours(run, blocks, index)}
    records: dict[_Key, dict[str, Any]] = {}
    if wanted:
        for record, _ in run.ledger.records():
            if record.get("block") in wanted:
                records["block", 0, record["block"]] = record
            elif "forgotten" in record and (key := _key(record["forgotten"])) is not None:
                records.pop(key, None)
        _spread(run, blocks, records)
    return Damage(records, problems, [])


def absent_by_volume(run: OpenRun) -> dict[int, list[absent.Range]]:
    """Return the files of the input that were absent when they were read, by the number of the volume."""
    blocks = BlockSequence(run.record.facts.plans)
    found: dict[int, set[int]] = {}
    for index, ranges in run.journal.absent.items():
        found.setdefault(blocks.task(index).volume, set()).update(absent.numbers_in(ranges))
    return {v: absent.as_ranges(numbers) for v, numbers in found.items()}


def _upper_neighbours(run: OpenRun, blocks: BlockSequence, index: int) -> Iterator[int]:
    task = blocks.task(index)
    plan = run.record.facts.plans[task.volume]
    if plan.has_overlaps:
        for direction in DIRECTIONS:
            neighbour = plan.neighbour(task, direction)
            if neighbour is not None and run.journal.finished[neighbour]:
                yield neighbour


def mend_journal(output: Path) -> int:
    """Remove damaged lines from the journal of an output; return how many there were."""
    ledger = Ledger.open(output)
    records.load(ledger)  # refuses a plan that has changed, or is of another schema
    with reported("write", str(ledger.path)):
        for name in ("journal.jsonl", "lock"):
            (ledger.path / name).touch()
    with ledger.writing():
        return ledger.mend_journal()


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


def _key(record: dict[str, Any]) -> _Key | None:
    if "block" in record:
        return "block", 0, int(record["block"])
    return ("level", int(record["volume"]), int(record["level"])) if "level" in record else None


def _spread(run: OpenRun, blocks: BlockSequence, records: dict[_Key, dict[str, Any]]) -> None:
    """Add the coarse levels that were made from damaged blocks or levels."""
    finest: dict[int, int] = {}
    for kind, volume, number in records:
        of, level = (blocks.task(number).volume, 0) if kind == "block" else (volume, number)
        finest[of] = min(finest.get(of, level), level)
    for volume, number in run.journal.levels:
        if number > finest.get(volume, number):
            records.setdefault(("level", volume, number), {"volume": volume, "level": number})


def _chunk_files(folder: Path, spec: OutputSpec) -> Iterator[Path]:
    """Yield the files that hold chunks of the output's arrays; whatever else lies in it belongs to others, labels for example."""
    for n, level in enumerate(spec.levels):
        grid = [
            ceil_div(size, part) for size, part in zip(level.shape, level.shard_shape or level.chunk_shape, strict=True)
        ]
        root = folder / str(n)
        for path in sorted(root.rglob("*")):
            place = re.split(r"[/.]", path.relative_to(root).as_posix().removeprefix("c/"))
            is_key = len(place) == len(grid) and all(part.isdecimal() for part in place)
            if is_key and path.is_file() and all(int(part) < size for part, size in zip(place, grid, strict=True)):
                yield path


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
