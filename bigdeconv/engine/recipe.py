"""What every block needs to know, sent once to every worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from bigdeconv.blocks import Plan
    from bigdeconv.deconvolution import Settings
    from bigdeconv.intensity import Camera, Validity
    from bigdeconv.priors.weights import WcrrWeights
    from bigdeconv.storage.omezarr import VolumeInfo


@dataclass(frozen=True, slots=True, eq=False)
class ChannelRecipe:
    """How one channel is restored and stored."""

    settings: Settings
    validity: Validity
    kernels: np.ndarray
    """PSFs, ``v z y x``."""
    output_scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How a block is read, restored, merged and written; the same for all blocks of a volume."""

    token: str
    """Names this start of this run on a cluster: two runs never share a task, nor a task that outlived its driver."""
    volume: VolumeInfo
    view_axis: str | None
    camera: Camera
    plan: Plan
    channels: dict[int, ChannelRecipe]
    model: WcrrWeights | None
    output: str
    """Path of the output's group."""
    output_axes: tuple[str, ...]
    output_dtype: str
    keep_bits: int | None
    scratch: str
    """Folder of the rims."""
    threads: int | None
    """Threads per block; None for the worker's own choice."""
