"""The PSF type: what the solvers, the planner and the ledger need to know of a point-spread function."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from bigdeconv.geometry import triple
from bigdeconv.numerics import camera
from bigdeconv.numerics.convolution import Blur

if TYPE_CHECKING:
    import numpy.typing as npt

    from bigdeconv.geometry import Box, Triple
    from bigdeconv.numerics.restoration import ResolvedSettings


@dataclass(frozen=True, slots=True, eq=False)
class PSF:
    """A PSF that is the same everywhere in the volume, for one or several views of one object.

    A voxel holds the integral of the PSF over its volume; the centre is the voxel at ``shape // 2``.  Callers use the
    properties and `operator`, never the position of a window: a PSF that varies in space can stand in for this class.

    Examples
    --------
    >>> import bigdeconv
    >>> psf = bigdeconv.PSF(bigdeconv.psf.gaussian((2.0, 1.5, 1.5))[None], (0.2, 0.1, 0.1))
    >>> psf.n_views, psf.support_zyx, psf.radius_zyx
    (1, (17, 13, 13), (8, 6, 6))
    """

    views: npt.NDArray[np.float32] = field(repr=False)
    """``v z y x``; ``v`` is 1 for a single view."""
    voxel_zyx_um: tuple[float, float, float]
    """Voxel size of the PSF and of the data it is for."""
    notes: tuple[str, ...] = ()
    """One sentence for each correction that `prepare` made."""

    @property
    def n_views(self) -> int:
        """Number of views."""
        return len(self.views)

    @property
    def support_zyx(self) -> Triple:
        """Extent in voxels of the box outside which the PSF is 0."""
        return triple(self.views.shape[1:])

    @property
    def radius_zyx(self) -> Triple:
        """Voxels from the centre to the faces of that box."""
        return triple(n // 2 for n in self.support_zyx)

    @property
    def digest(self) -> str:
        """Checksum of the values that decide a restoration."""
        shape = repr(self.views.shape).encode()
        return hashlib.sha256(shape + np.ascontiguousarray(self.views).tobytes()).hexdigest()[:16]

    @property
    def hot_ratio(self) -> float | None:
        """Largest ratio of a voxel to its brightest neighbour that is no defect, see `bigdeconv.numerics.camera`."""
        return camera.hot_ratio(self.views)

    def operator(self, window: Box, settings: ResolvedSettings) -> Blur:
        """Return the forward model for a data window.

        Parameters
        ----------
        window : Box
            Data window in voxels of the volume; this PSF uses its shape only.
        settings : ResolvedSettings
            Device and dtype of the computation.
        """
        views = torch.from_numpy(np.ascontiguousarray(self.views)).to(settings.device, settings.torch_dtype)
        return Blur(views, window.shape)

    def operator_key(self, window: Box) -> Triple:
        """Return a key that two windows share if one operator serves both."""
        return window.shape
