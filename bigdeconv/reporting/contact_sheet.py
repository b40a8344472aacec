"""Contact sheet of trials: sections of the data and of each candidate in one display window, residuals, and the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bigdeconv.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from bigdeconv.calibration.tuning import Candidate, Tuning

RESIDUAL_LIMIT = 4.0
"""Residuals are shown up to so many standard deviations of the photon noise."""


def require_plotting() -> None:
    """Raise where matplotlib is not installed.

    Raises
    ------
    InvalidInputError
    """
    try:
        import matplotlib as _  # noqa: F401
    except ImportError as error:
        raise InvalidInputError(
            "tune: the contact sheet needs matplotlib; pip install 'bigdeconv[plot]' and run it again."
        ) from error


def write_contact_sheet(path: Path, tuning: Tuning, voxel_zyx_um: tuple[float, float, float]) -> None:
    """Draw the trials of a channel as a PNG file.

    Parameters
    ----------
    path : Path
    tuning : Tuning
    voxel_zyx_um : tuple of float
        Voxel size in µm, for the proportions of XZ sections and the scale bar.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * (len(tuning.candidates) + 1), 12), layout="constrained")
    rows = figure.subplots(4, len(tuning.candidates) + 1, squeeze=False)
    plane, line = _most_structured(tuning.best.estimate)
    # One window for all estimates; the data are dimmer and flatter, and have their own.
    top = float(np.percentile(tuning.best.estimate, 99.8))
    measured = tuning.window - tuning.best.settings.background
    _sections(rows[:, 0], "measured", measured, plane, line, float(np.percentile(measured, 99.8)), voxel_zyx_um)
    rows[2, 0].axis("off")
    for column, candidate in enumerate(tuning.candidates, start=1):
        mark = "best: " if candidate is tuning.best else ""
        _sections(rows[:, column], mark + candidate.text, candidate.estimate, plane, line, top, voxel_zyx_um)
        rows[2, column].imshow(
            candidate.residual[plane], cmap="RdBu_r", vmin=-RESIDUAL_LIMIT, vmax=RESIDUAL_LIMIT, interpolation="nearest"
        )
        rows[2, column].set_title("residual / noise", fontsize=8)
        rows[2, column].axis("off")
        _score(rows[3, column], candidate)
    _widths(rows[3, 0], tuning)
    figure.savefig(path, dpi=110)


def _most_structured(estimate: np.ndarray) -> tuple[int, int]:
    """Return the plane and the row of the largest variance."""
    return int(estimate.var(axis=(1, 2)).argmax()), int(estimate.var(axis=(0, 2)).argmax())


def _sections(
    axes: Any,
    title: str,
    volume: np.ndarray,
    plane: int,
    line: int,
    top: float,
    voxel_zyx_um: tuple[float, float, float],
) -> None:
    axes[0].set_title(title, fontsize=8)
    shown = {"cmap": "gray", "vmin": 0, "vmax": max(top, 1e-9), "interpolation": "nearest"}
    axes[0].imshow(volume[plane], **shown)
    axes[1].imshow(volume[:, line], aspect=voxel_zyx_um[0] / voxel_zyx_um[2], **shown)
    bar = max(volume.shape[2] // 5, 1)
    axes[0].plot([1, 1 + bar], [volume.shape[1] - 3] * 2, color="white", linewidth=3)
    axes[0].text(1, volume.shape[1] - 5, f"{bar * voxel_zyx_um[2]:.2g} µm", color="white", fontsize=8)
    axes[1].set_title("XZ", fontsize=8)
    for axis in axes[:2]:
        axis.set_xticks([])
        axis.set_yticks([])


def _score(axis: Any, candidate: Candidate) -> None:
    axis.plot(list(candidate.curve), list(candidate.curve.values()), marker="o")
    axis.axvline(candidate.settings.iterations, color="gray", linestyle=":")
    axis.set_yscale("symlog", linthresh=10)
    axis.set_xlabel("iterations", fontsize=8)
    axis.set_ylabel("nats above the best", fontsize=8)


def _widths(axis: Any, tuning: Tuning) -> None:
    widths = sorted(tuning.width_nats)
    axis.plot(widths, [tuning.width_nats[width] for width in widths], marker="o")
    axis.set_yscale("symlog", linthresh=10)
    axis.set_xlabel("width of the PSF, times the given one", fontsize=8)
    axis.set_ylabel("nats above the best", fontsize=8)
