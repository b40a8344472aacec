"""The recipe of a volume's blocks, sent once to every worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bigdeconv.numerics.camera import Camera, DataMask
from bigdeconv.numerics.restoration import CalibratedSettings  # noqa: TC001

if TYPE_CHECKING:
    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.planning.blocks import Plan
    from bigdeconv.psf import PSF
    from bigdeconv.storage.omezarr import VolumeInfo


@dataclass(frozen=True, slots=True)
class ChannelNumbers:
    """Numbers that all blocks of a channel share."""

    settings: CalibratedSettings
    data_mask: DataMask
    output_scale: float
    """Factor from photons to stored values."""
    camera: Camera = field(default_factory=Camera)
    """Camera model, as set or as the noise tells."""

    @property
    def text(self) -> str:
        """The numbers in words."""
        settings = self.settings
        strength = "" if settings.method == "rl" else f", τ {settings.tau:.3g}"
        camera = "" if self.camera.gain == 1 else f"gain {self.camera.gain:.3g}, offset {self.camera.offset:.4g}, "
        return (
            f"{camera}background {settings.background:.4g} photons, intensity scale {settings.intensity_scale:.4g} photons"
            f"{strength}, {settings.iterations} iterations, output scale {self.output_scale:g}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """Everything that a worker needs to read, restore, merge and write the blocks of a volume."""

    token: str
    """Name of this start of this run on a cluster: two runs share no task, and neither do two starts of one run."""
    volume: VolumeInfo
    view_axis: str | None
    plan: Plan
    channels: dict[int, ChannelNumbers]
    psfs: dict[int, PSF]
    """By channel."""
    model: WcrrWeights | None
    output: str
    """Path of the output's group."""
    output_axes: tuple[str, ...]
    output_dtype: str
    keep_bits: int | None
    scratch: str
    """Folder of the overlap slabs."""
    refuses_absent: bool
    """Whether a chunk that is absent from the input is an error."""
    syncs: bool
    """Whether files are on disk before a block counts as finished."""
    threads: int | None
    """Threads per block; None for a fair share of the worker's host."""
