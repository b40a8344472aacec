"""Facts of a job: what is known of it before any voxel is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bigdeconv.config import JobConfig  # noqa: TC001  (the ledger stores the facts by their annotations)
from bigdeconv.geometry import ceil_div
from bigdeconv.numerics.camera import Camera
from bigdeconv.numerics.restoration import ResolvedSettings  # noqa: TC001
from bigdeconv.planning import seam_probes
from bigdeconv.planning.blocks import Plan  # noqa: TC001
from bigdeconv.planning.resources import Resources  # noqa: TC001
from bigdeconv.storage.collection import Collection  # noqa: TC001
from bigdeconv.storage.omezarr import VolumeInfo  # noqa: TC001

if TYPE_CHECKING:
    import numpy as np

    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.planning.cost import Costs
    from bigdeconv.planning.memory import Terms
    from bigdeconv.psf import PSF


@dataclass(frozen=True, slots=True)
class JobFacts:
    """Settings, volumes and plans of a job: the part that its plan, its record and its output share."""

    config: JobConfig
    settings: ResolvedSettings
    images: Collection
    volumes: tuple[VolumeInfo, ...]
    """Alike but for their extents."""
    plans: tuple[Plan, ...]
    """One for each volume."""
    resources: Resources
    output_axes: tuple[str, ...]
    output_dtype: str
    blocks_outside: int
    """Number of blocks outside the mask."""

    @property
    def first_volume(self) -> VolumeInfo:
        """The first volume; the others have its axes, dtype, voxel size and channels."""
        return self.volumes[0]

    @property
    def largest_plan(self) -> Plan:
        """The plan that needs the most memory."""
        return max(self.plans, key=lambda plan: plan.peak_bytes_per_worker)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels that are deconvolved, the same in every volume."""
        return self.plans[0].channels

    @property
    def n_blocks(self) -> int:
        """Blocks of all volumes."""
        return sum(plan.n_blocks for plan in self.plans)

    @property
    def camera(self) -> Camera:
        """Camera model of the settings; a gain that is not set is 1."""
        return Camera(self.config.camera_offset, self.config.gain or 1.0, self.config.read_noise)


@dataclass(frozen=True, slots=True, eq=False)
class JobPlan:
    """A planned job: its facts with PSFs, model, mask and predicted costs.  No voxel of a volume has been read."""

    facts: JobFacts
    psfs: dict[int, PSF]
    """By channel."""
    model: WcrrWeights | None = field(repr=False)
    """Learned prior."""
    outside: np.ndarray | None = field(repr=False)
    """Whether a block lies outside the mask, by its index through all volumes; None without a mask."""
    costs: Costs
    """Measured on this machine."""
    driver_memory: Terms
    """Terms of the driver's peak memory, in bytes."""
    warnings: tuple[str, ...]
    psf_digest: str
    """Checksum of the PSFs as given: the data may choose another width."""

    @property
    def n_views(self) -> int:
        """Views of one object."""
        return self.psfs[self.facts.channels[0]].n_views

    @property
    def seconds_per_block(self) -> float:
        """Predicted CPU time of a block, or time of a GPU."""
        iterations = self.facts.settings.iterations
        total = sum(self.costs.total(plan, self.n_views, iterations) for plan in self.facts.plans)
        return total / self.facts.n_blocks

    @property
    def wall_seconds(self) -> float:
        """Predicted time of blocks and seam probes on the workers of this machine; blocks outside the mask take none."""
        facts, resources = self.facts, self.facts.resources
        blocks = facts.n_blocks - facts.blocks_outside
        probes = seam_probes.available(facts.plans, facts.config.seam_probes)
        rounds = ceil_div(blocks, resources.workers) + ceil_div(probes, resources.workers)
        return self.seconds_per_block * rounds / (1 if resources.device == "cuda" else resources.threads)
