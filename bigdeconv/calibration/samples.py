"""Samples of a channel: regions spread over its volumes and time points, read once and kept as stored counts."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from bigdeconv.errors import StoreError
from bigdeconv.geometry import Box, triple
from bigdeconv.planning.memory import SAMPLE_REGION, SAMPLED_VOXELS
from bigdeconv.storage.absent import read_and_look
from bigdeconv.storage.locations import is_remote
from bigdeconv.storage.patience import patiently

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bigdeconv.storage.omezarr import VolumeInfo

T = TypeVar("T")

SAMPLED_VOLUMES = 8
"""Largest number of volumes of a job that are sampled."""
SAMPLED_TIMEPOINTS = 3
"""Largest number of time points of a volume that are sampled."""
REGIONS_PER_AXIS = 3
LOOK_AGAIN_SECONDS = 0.2
"""Pause before a region that lacks files of a remote store is read again."""


class SampleRegion(NamedTuple):
    """A box of one volume at one time point."""

    volume: VolumeInfo
    timepoint: int
    box: Box


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sample regions of a channel; nothing is read yet."""

    volumes: tuple[tuple[VolumeInfo, tuple[int, ...]], ...]
    """Volumes of one dtype, each with the time points to be deconvolved."""
    channel: int
    view_axis: str | None
    n_views: int
    within: Box | None = None
    """Part of every volume to which the regions keep; None for all of it."""

    def regions(self) -> Iterator[SampleRegion]:
        """Yield up to 27 regions of each of up to eight volumes, and of up to three time points of each."""
        sampled = _spread(self.volumes, SAMPLED_VOLUMES)
        n_times = sum(min(len(timepoints), SAMPLED_TIMEPOINTS) for _, timepoints in sampled)
        n_regions = REGIONS_PER_AXIS**3 * n_times * self.n_views
        widest = max(min(SAMPLE_REGION, int((SAMPLED_VOXELS / n_regions) ** (1 / 3))), 1)
        for volume, timepoints in sampled:
            whole = self.within or Box.of_shape(volume.zyx_shape)
            edge = triple(min(widest, n) for n in whole.shape)
            starts = [
                sorted({a + round((n - e) * f) for f in (0.0, 0.5, 1.0)})
                for a, n, e in zip(whole.start, whole.shape, edge, strict=True)
            ]
            for timepoint, *start in product(_spread(timepoints, SAMPLED_TIMEPOINTS), *starts):
                box = Box(triple(start), triple(a + e for a, e in zip(start, edge, strict=True)))
                yield SampleRegion(volume, timepoint, box)

    def read(self, region: SampleRegion) -> np.ndarray:
        """Return the counts of a region, ``v z y x``.

        A server may cut an answer short, or say once that a chunk is not there which is: it is asked again.
        """
        if is_remote(region.volume.location):
            counts, absent = patiently(lambda: self._read(region))
            if absent:
                time.sleep(LOOK_AGAIN_SECONDS)
                counts, _ = patiently(lambda: self._read(region))
        else:
            counts, _ = self._read(region)
        return counts if self.view_axis else counts[None]

    def _read(self, region: SampleRegion) -> tuple[np.ndarray, list[tuple[int, int]]]:
        volume, timepoint, box = region
        return read_and_look(volume, box, timepoint=timepoint, channel=self.channel, view_axis=self.view_axis)


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """The stored counts of a channel's sample regions."""

    sampling: Sampling
    regions: tuple[SampleRegion, ...]
    counts: tuple[np.ndarray, ...]
    """One ``v z y x`` array per region, as stored."""

    @classmethod
    def read(cls, sampling: Sampling) -> Samples:
        """Read every region once; one that cannot be read is left out, and its blocks will fail with the reason.

        Raises
        ------
        StoreError
            If no region can be read.
        """
        failure: StoreError | None = None
        found: list[tuple[SampleRegion, np.ndarray]] = []
        for region in sampling.regions():
            try:
                found.append((region, sampling.read(region)))
            except StoreError as error:
                failure = error
        if failure is not None and not found:
            raise failure
        return cls(sampling, tuple(region for region, _ in found), tuple(counts for _, counts in found))

    @property
    def digest(self) -> str:
        """Checksum of the counts: part of the identity of a run."""
        checksum = hashlib.sha256()
        for counts in self.counts:
            checksum.update(np.ascontiguousarray(counts).tobytes())
        return checksum.hexdigest()

    def views(self) -> Iterator[tuple[SampleRegion, np.ndarray]]:
        """Yield the counts ``z y x`` of every view of every region."""
        for region, counts in zip(self.regions, self.counts, strict=True):
            for view in counts:
                yield region, view


def _spread(items: Sequence[T], count: int) -> list[T]:
    """Return up to ``count`` items, evenly spread, the first and the last among them."""
    last = len(items) - 1
    return [items[i] for i in sorted({round(last * n / (count - 1)) for n in range(count)})]
