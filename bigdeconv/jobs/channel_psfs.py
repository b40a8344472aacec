"""PSFs of a job's channels and views, read from the files that the settings name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bigdeconv.errors import InvalidInputError
from bigdeconv.geometry import triple
from bigdeconv.psf import PSF, gaussian, prepare, scaled
from bigdeconv.storage.psf_files import read_psf

if TYPE_CHECKING:
    from bigdeconv.config import JobConfig
    from bigdeconv.jobs.inputs import Inputs

    Entry = tuple[int | None, int | None, str]
    """Channel, view and file; None for every channel, and for a file that serves all views."""

NOMINAL_RADIUS = 16
"""Radius in voxels of the PSF that a volume which does not exist yet is planned with where none is given."""


def files(config: JobConfig) -> list[str]:
    """Return the PSF files that the settings name."""
    return [file for _, _, file in map(_parse, config.psf)]


def are_nominal(config: JobConfig, inputs: Inputs) -> bool:
    """Tell whether both the volume and its PSF are hypothetical."""
    return inputs.hypothetical and not config.psf


def read(config: JobConfig, inputs: Inputs) -> tuple[dict[int, PSF], list[str]]:
    """Read and prepare the PSFs of a job.

    Parameters
    ----------
    config : JobConfig
    inputs : Inputs

    Returns
    -------
    psfs : dict of PSF
        By channel; none is wider than the narrowest volume.
    warnings : list of str

    Raises
    ------
    InvalidInputError
        If a channel or view has none, or a file cannot serve as one.
    """
    if are_nominal(config, inputs):
        return _nominal(inputs)
    if not config.psf:
        raise InvalidInputError("psf: missing. Pass --psf FILE (TIFF or .npy); for no blur, use a PSF of one voxel.")
    entries = [_parse(entry) for entry in config.psf]
    _refuse_unused(entries, inputs)
    prepared: dict[tuple[str, ...], PSF] = {}
    psfs: dict[int, PSF] = {}
    warnings: list[str] = []
    for channel in inputs.channels:
        chosen = _files_of_channel(entries, channel, inputs.n_views)
        if chosen not in prepared:
            prepared[chosen] = scaled(_prepare(chosen, config, inputs), config.psf_scale or (1.0, 1.0, 1.0))
            warnings += prepared[chosen].notes
        psfs[channel] = prepared[chosen]
    return psfs, warnings


def _nominal(inputs: Inputs) -> tuple[dict[int, PSF], list[str]]:
    """Return a Gaussian of four standard deviations' radius for all channels and views, cut off where a volume is thin."""
    radius = [min(NOMINAL_RADIUS, (n - 1) // 2) for n in inputs.first_volume.zyx_shape]
    view = gaussian([r / 4 for r in radius])
    box = ",".join(str(n) for n in view.shape)
    psf = PSF(np.stack([view] * inputs.n_views), inputs.first_volume.voxel_zyx_um)
    return dict.fromkeys(inputs.channels, psf), [f"psf: not given; the plan is for a PSF box of {box} voxels."]


def _refuse_unused(entries: list[Entry], inputs: Inputs) -> None:
    for channel, view, file in entries:
        if (channel is not None and channel not in inputs.channels) or (view is not None and view >= inputs.n_views):
            raise InvalidInputError(
                f"psf: {file!r} is for {_place(channel, view)}, which the job does not have; drop it."
            )
    places = [(channel, view) for channel, view, _ in entries]
    if len(set(places)) < len(places):
        raise InvalidInputError(
            "psf: two files are given for the same channel and view; give one, or say C0=FILE, V0=FILE."
        )


def _place(channel: int | None, view: int | None) -> str:
    named = (("channel", channel), ("view", view))
    return ", ".join(f"{name} {number}" for name, number in named if number is not None)


def _parse(entry: str) -> Entry:
    """Split ``C1.V3=FILE`` into channel, view and file; what is not said is None."""
    match = re.fullmatch(r"(?:C(\d+))?\.?(?:V(\d+))?=(.+)", entry)
    if match is None:
        return None, None, entry
    channel, view = (None if g is None else int(g) for g in match.groups()[:2])
    return channel, view, match[3]


def _files_of_channel(entries: list[Entry], channel: int, n_views: int) -> tuple[str, ...]:
    mine = [e for e in entries if e[0] in (None, channel)]
    # What names the channel goes before what is for all.
    mine.sort(key=lambda e: e[0] is None)
    whole = [file for _, view, file in mine if view is None]
    by_view = {view: file for _, view, file in reversed(mine) if view is not None}
    if by_view:
        missing = [v for v in range(n_views) if v not in by_view]
        if missing:
            raise InvalidInputError(f"psf: view {missing[0]} of channel {channel} has none; give V{missing[0]}=FILE.")
        return tuple(by_view[v] for v in range(n_views))
    if not whole:
        raise InvalidInputError(f"psf: channel {channel} has none; give C{channel}=FILE, or FILE for all channels.")
    return (whole[0],)


def _prepare(chosen: tuple[str, ...], config: JobConfig, inputs: Inputs) -> PSF:
    arrays, name = [read_psf(file) for file in chosen], Path(chosen[0]).name
    if len({a.shape for a in arrays}) > 1:
        raise InvalidInputError(
            f"psf: the files of one channel's views have shapes {[a.shape for a in arrays]}; give one shape."
        )
    array = arrays[0] if len(arrays) == 1 else np.stack(arrays)
    prepared = prepare(
        array,
        voxel_zyx_um=inputs.first_volume.voxel_zyx_um,
        psf_voxel_zyx_um=config.psf_voxel_um,
        volume_zyx_shape=triple(min(extents) for extents in zip(*(v.zyx_shape for v in inputs.volumes), strict=True)),
        name=f"psf {name}",
    )
    if prepared.n_views != inputs.n_views:
        raise InvalidInputError(
            f"psf: {name!r} holds {prepared.n_views} views, the data {inputs.n_views}; say the axis of the views "
            "with --views-axis, and give a PSF for each."
        )
    return prepared
