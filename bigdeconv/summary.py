"""How a run ended, added up from its journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bigdeconv.engine.schedule import Progress


@dataclass(slots=True)
class Summary:
    """How a run ended."""

    output: str
    blocks_total: int
    blocks_done: int
    blocks_skipped: int
    blocks_failed: int
    seconds: float
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Voxels left out, mended or clipped, by reason."""
    seams: dict[str, Any] | None = None
    """What solving some seams again has found, see `probes.certificate`; None where none was."""

    @property
    def complete(self) -> bool:
        """Whether every block and level is written and nothing is wrong with them."""
        return self.blocks_done == self.blocks_total and not self.errors


@dataclass(slots=True)
class Tally:
    """What the journal adds up to: its size does not grow with the number of blocks."""

    blocks: int = 0
    skipped: int = 0
    levels: set[tuple[int, int]] = field(default_factory=set)
    """Volume and level."""
    counts: dict[str, int] = field(default_factory=dict)
    complete: bool = False
    """Whether a driver has closed it with nothing left to do."""

    @classmethod
    def of(cls, records: Iterable[dict[str, Any]], blocks_outside: int) -> Tally:
        """Count a whole journal, after the blocks that a mask leaves out."""
        tally = cls(blocks_outside, blocks_outside)
        for record in records:
            tally.add(record)
        return tally

    def add(self, record: dict[str, Any]) -> None:
        """Count one record of the journal."""
        if "level" in record:
            self.levels.add((record["volume"], record["level"]))
        self.complete |= bool(record.get("complete"))
        if "block" not in record:
            return
        self.blocks += 1
        self.skipped += bool(record.get("skipped"))
        for name in ("voxels", "not_finite", "fill", "hot", "negative", "clipped"):
            self.counts[name] = self.counts.get(name, 0) + record.get(name, 0)


def summarise(output: Path, progress: Progress, tally: Tally, warnings: Iterable[str]) -> Summary:
    """Return how a run stands, with a sentence about what its voxels say of the settings."""
    warnings = list(warnings)
    counts = {name: n for name, n in tally.counts.items() if n and name != "voxels"}
    if counts.get("clipped"):
        warnings.append(
            f"{counts['clipped']} voxels were brighter than uint16 holds and are clipped; lower --output-scale."
        )
    share = counts.get("negative", 0) / max(tally.counts.get("voxels", 0), 1)
    if share > 0.01 and not any("camera offset" in w for w in warnings):
        warnings.append(f"{100 * share:.1f} % of the voxels lie below the camera offset; check --camera-offset.")
    return Summary(
        output=str(output),
        blocks_total=progress.blocks_total,
        blocks_done=progress.blocks_finished,
        blocks_skipped=progress.blocks_skipped,
        blocks_failed=progress.blocks_failed,
        seconds=0.0,
        warnings=warnings,
        errors=list(progress.errors),
        counts=counts,
    )
