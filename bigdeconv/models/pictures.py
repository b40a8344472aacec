"""Pictures of what a model has learned: its filters, its potential, and how it follows the noise."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigdeconv.errors import InvalidInputError, OutputExistsError, StoreError
from bigdeconv.priors.filters import impulse_response
from bigdeconv.priors.wcrr import SIGMA_EPSILON, potential, scaling

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bigdeconv.priors.weights import WcrrWeights

    Floats = npt.NDArray[np.float64]

MOST_SLICES = 7
"""Slices of a filter that are shown, the middle ones."""
NAMED_LINES = 16
"""Up to so many channels have a line of their own in the legend."""
DPI = 120


def save(weights: WcrrWeights, folder: str | Path, card: Mapping[str, Any]) -> tuple[Path, ...]:
    """Write ``filters.png``, ``potential.png``, ``scalings.png``, ``card.txt`` and ``card.json``.

    Parameters
    ----------
    weights
        The model.
    folder
        Where they go; must not exist.
    card
        What the model is, by name.

    Returns
    -------
    tuple of Path
        The files.

    Raises
    ------
    InvalidInputError
        If matplotlib is not installed.
    OutputExistsError
        If the folder exists.
    StoreError
        If a file cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise OutputExistsError(f"output: {str(folder)!r} exists; give another folder, or remove it.")
    name = str(card.get("name", "model"))
    figures = {
        "filters.png": filters_figure(weights, name),
        "potential.png": potential_figure(weights, name),
        "scalings.png": scalings_figure(weights, name),
    }
    texts = {
        "card.txt": card_text(card) + "\n",
        "card.json": json.dumps(dict(card), indent=2, ensure_ascii=False) + "\n",
    }
    try:
        folder.mkdir(parents=True)
        for file, figure in figures.items():
            figure.savefig(folder / file, dpi=DPI, metadata={"Software": None})
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StoreError(f"output: {str(folder)!r} cannot be written ({error}).") from error
    return tuple(folder / file for file in (*figures, *texts))


def card_text(card: Mapping[str, Any]) -> str:
    """Return a card as aligned lines."""
    return "\n".join(f"{name:<12} {value}" for name, value in card.items())


def filters_figure(weights: WcrrWeights, name: str = "model") -> Figure:
    """Draw the impulse response of every channel of the last layer, the largest first: a panel each, slices side by side."""
    responses = _responses(weights)
    norms = np.sqrt((responses**2).sum(axis=(1, 2, 3)))
    depth = responses.shape[1]
    shown = min(depth, MOST_SLICES)
    first = (depth - shown) // 2
    slices = responses[:, first : first + shown]

    columns = max(1, min(4, math.ceil(math.sqrt(len(responses) / 2))))
    rows = math.ceil(len(responses) / columns)
    # In inches; above each panel is a line of text.
    panels = [_side_by_side(response) for response in slices]
    panel_width = 0.45 * shown if shown > 1 else 1.0
    panel_height = panel_width * panels[0].shape[0] / panels[0].shape[1]
    gap, line, top, bottom = 0.4, 0.28, 0.95, 0.85
    width = max(columns * (panel_width + gap) + gap, 5.5)
    height = rows * (panel_height + line) + top + bottom
    figure = _figure(width, height)
    grid = figure.add_gridspec(
        rows,
        columns,
        left=gap / width,
        right=1 - gap / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=gap / panel_width,
        hspace=line / panel_height,
    )
    for place, channel in enumerate(np.argsort(-norms, kind="stable")):
        axes = figure.add_subplot(grid[divmod(place, columns)])
        axes.set_label(f"channel {channel}")
        image = axes.imshow(panels[channel], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(f"{channel}:  {norms[channel]:.2g}", fontsize=8, pad=3)
        axes.set_axis_off()
    bar = figure.colorbar(
        image, cax=figure.add_axes((0.3, 0.5 / height, 0.4, 0.12 / height)), orientation="horizontal", ticks=[-1, 0, 1]
    )
    bar.set_label("share of the channel's largest value", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(f"Filters of {name}: impulse responses", fontsize=11, y=1 - 0.18 / height, va="top")
    about = f"channel:  norm;  {_slices_text(shown, depth)}"
    figure.text(0.5, 1 - 0.45 / height, about, ha="center", va="top", fontsize=8, color="0.35")
    return figure


def potential_figure(weights: WcrrWeights, name: str = "model") -> Figure:
    """Draw the potential ψ and its derivative."""
    mu, gamma = math.exp(weights.log_mu), min(abs(weights.gamma), 1.0)
    knee = weights.beta / (mu + gamma)
    # Beyond β/γ the derivative is 0; where it falls so slowly that this is far off, some knees show all there is to see.
    reach = 1.25 * min(weights.beta / gamma if gamma > 0 else math.inf, max(10 * knee, 4.0))
    reach = reach if math.isfinite(reach) and reach > 0 else 1.0
    half = np.concatenate([np.linspace(0, 2 * knee, 200), np.linspace(2 * knee, reach, 800)])
    t = np.unique(np.concatenate([-half, half]))
    value, slope = (v.numpy() for v in potential(weights, torch.from_numpy(t)))
    figure = _figure(8.0, 3.4)
    left, right = figure.subplots(1, 2)
    for axes, curve, label in ((left, value, "ψ(t)"), (right, slope, "ψ′(t)")):
        axes.plot(t, curve, color="C0")
        axes.axhline(0, color="0.75", linewidth=0.8, zorder=0)
        axes.axvline(0, color="0.75", linewidth=0.8, zorder=0)
        axes.set(xlabel="t", ylabel=label, xlim=(t[0], t[-1]))
    left.set_title("potential", fontsize=10)
    right.set_title("derivative", fontsize=10)
    numbers = f"μ = {mu:.4g}\nβ = {weights.beta:.4g}\nγ = {gamma:.4g}\nknee = {knee:.3g}"
    right.text(0.03, 0.96, numbers, transform=right.transAxes, va="top", fontsize=8, color="0.35")
    figure.suptitle(f"Potential of {name}", fontsize=11)
    figure.tight_layout()
    return figure


def scalings_figure(weights: WcrrWeights, name: str = "model") -> Figure:
    """Draw ``α_l(σ) = exp(s_l(σ))/(σ + ε)`` of every channel over the noise level."""
    unit, n_channels = weights.sigma_unit, len(weights.scaling)
    knots = np.linspace(0, weights.sigma_max, weights.scaling.shape[1]) * unit
    last = weights.sigma_max * unit
    sigma = np.geomspace(min(last / 100, weights.sigma_default / 2), last, 200)
    # The splines bend at their knots.
    sigma = np.unique(np.concatenate([sigma, knots[knots > sigma[0]]]))
    alpha = np.stack([scaling(weights, float(s)) for s in sigma], axis=1)
    order = np.argsort(-np.linalg.norm(_responses(weights).reshape(n_channels, -1), axis=1), kind="stable")
    figure = _figure(7.0, 4.2)
    axes: Axes = figure.subplots()
    colours = _colours(n_channels)
    for place, channel in enumerate(order):
        axes.loglog(sigma, alpha[channel], color=colours[place], linewidth=1.0, label=str(channel))
    axes.axvline(weights.sigma_default, color="0.4", linestyle="--", linewidth=0.9)
    axes.annotate(
        "default σ",
        (weights.sigma_default, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=8,
        color="0.4",
    )
    axes.set(xlim=(sigma[0], sigma[-1]))
    axes.set_xlabel("σ, as a fraction of the intensity scale")
    axes.set_ylabel("α")
    axes.grid(visible=True, which="major", color="0.9")
    if n_channels <= NAMED_LINES:
        axes.legend(title="channel", fontsize=7, title_fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    else:
        _rank_bar(figure, axes, n_channels)
    figure.suptitle(f"Scalings of {name}", fontsize=11)
    about = (
        f"α = exp(s(σ)) / (σ + {SIGMA_EPSILON:g}) of each channel; in it, σ counts in {unit:.3g} of the intensity scale"
    )
    axes.set_title(about, fontsize=8, color="0.35")
    figure.tight_layout()
    return figure


def _figure(width: float, height: float) -> Figure:
    """Return a figure that no window shows."""
    try:
        from matplotlib.figure import Figure  # an optional extra, and slow to import
    except ImportError as error:
        raise InvalidInputError("output: pictures need matplotlib: pip install 'bigdeconv[plot]'.") from error
    return Figure(figsize=(width, height))


def _responses(weights: WcrrWeights) -> Floats:
    """Return the filters of all layers together, ``channel z y x``, of norm 1 as an operator."""
    layers = [torch.as_tensor(layer, dtype=torch.float64) for layer in weights.layers]
    return np.asarray(impulse_response(layers).numpy() / math.sqrt(weights.lambda_max))


def _side_by_side(slices: Floats) -> Floats:
    """Put the slices of one filter in a row, in shares of its largest value, with gaps between them that show nothing."""
    scaled = (slices / (np.abs(slices).max() or 1.0)).repeat(4, axis=1).repeat(4, axis=2)
    gap = np.full((scaled.shape[1], 2), np.nan)
    pieces = [piece for plane in scaled for piece in (plane, gap)][:-1]
    return np.concatenate(pieces, axis=1)


def _slices_text(shown: int, depth: int) -> str:
    if depth == 1:
        return "one plane, y down and x to the right"
    which = f"the {shown} middle of {depth} planes" if shown < depth else f"all {depth} planes"
    return f"{which} in z, from left to right"


def _colours(n: int) -> list[tuple[float, float, float, float]]:
    from matplotlib import colormaps

    if n <= 10:
        return [colormaps["tab10"](i) for i in range(n)]
    if n <= 20:
        return [colormaps["tab20"](i) for i in range(n)]
    return [colormaps["viridis"](i / (n - 1)) for i in range(n)]


def _rank_bar(figure: Figure, axes: Axes, n: int) -> None:
    """Explain the colours of many lines."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(1, n), "viridis"), ax=axes)
    bar.set_label("rank of the channel's filter by norm, 1 the largest", fontsize=8)
