"""Figures of a model: its filters, its potential, and its scalings over the noise level."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigdeconv.errors import InvalidInputError, OutputExistsError, StoreError
from bigdeconv.models import cards
from bigdeconv.numerics.priors.filters import impulse_response
from bigdeconv.numerics.priors.wcrr import SIGMA_EPSILON, potential, scaling
from bigdeconv.storage.atomic import new_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bigdeconv.numerics.priors.weights import WcrrWeights

    Floats = npt.NDArray[np.float64]

MAX_SLICES = 7
"""Largest number of slices of a filter that are shown, the middle ones."""
NAMED_LINES = 16
"""Largest number of channels that the legend names one by one; for more there is a colour bar."""
DPI = 120


def draw(model: WcrrWeights, folder: str | Path, card: Mapping[str, Any] | None = None) -> tuple[Path, ...]:
    """Write ``filters.png``, ``potential.png``, ``scalings.png``, ``card.txt`` and ``card.json``, or nothing at all.

    Parameters
    ----------
    model : WcrrWeights
    folder : str or Path
        Folder of the files, which must not exist.
    card : mapping of str to Any, optional
        Values by label; by default `bigdeconv.models.card`.

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
    rows = cards.card(model) if card is None else card
    name = str(rows.get("name", "model"))
    figures = {
        "filters.png": filters_figure(model, name),
        "potential.png": potential_figure(model, name),
        "scalings.png": scalings_figure(model, name),
    }
    texts = {
        "card.txt": cards.card_text(rows) + "\n",
        "card.json": json.dumps(dict(rows), indent=2, ensure_ascii=False) + "\n",
    }
    try:
        with new_folder(folder) as building:
            building.mkdir()
            for file, figure in figures.items():
                figure.savefig(building / file, dpi=DPI, metadata={"Software": None})
            for file, text in texts.items():
                (building / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"output: {str(folder)!r} cannot be written ({error}). Check free space and permissions."
        ) from error
    return tuple(folder / file for file in (*figures, *texts))


def filters_figure(model: WcrrWeights, name: str = "model") -> Figure:
    """Draw the impulse responses of the channels of the last layer, largest first, one panel each with its slices in a row.

    Parameters
    ----------
    model : WcrrWeights
    name : str
        Name for the title.
    """
    responses = _responses(model)
    norms = np.sqrt((responses**2).sum(axis=(1, 2, 3)))
    depth = responses.shape[1]
    shown = min(depth, MAX_SLICES)
    first = (depth - shown) // 2
    slices = responses[:, first : first + shown]

    columns = max(1, min(4, math.ceil(math.sqrt(len(responses) / 2))))
    rows = math.ceil(len(responses) / columns)
    # Lengths in inches; above each panel there is a line of text.
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


def potential_figure(model: WcrrWeights, name: str = "model") -> Figure:
    """Draw the potential ψ and its derivative.

    Parameters
    ----------
    model : WcrrWeights
    name : str
        Name for the title.
    """
    mu, gamma = math.exp(model.log_mu), min(abs(model.gamma), 1.0)
    knee = model.beta / (mu + gamma)
    # Beyond β/γ the derivative is 0; if that is far away, ten times the knee is enough to show the shape.
    reach = 1.25 * min(model.beta / gamma if gamma > 0 else math.inf, max(10 * knee, 4.0))
    reach = reach if math.isfinite(reach) and reach > 0 else 1.0
    half = np.concatenate([np.linspace(0, 2 * knee, 200), np.linspace(2 * knee, reach, 800)])
    t = np.unique(np.concatenate([-half, half]))
    value, slope = (v.numpy() for v in potential(model, torch.from_numpy(t)))
    figure = _figure(8.0, 3.4)
    left, right = figure.subplots(1, 2)
    for axes, curve, label in ((left, value, "ψ(t)"), (right, slope, "ψ′(t)")):
        axes.plot(t, curve, color="C0")
        axes.axhline(0, color="0.75", linewidth=0.8, zorder=0)
        axes.axvline(0, color="0.75", linewidth=0.8, zorder=0)
        axes.set(xlabel="t", ylabel=label, xlim=(t[0], t[-1]))
    left.set_title("potential", fontsize=10)
    right.set_title("derivative", fontsize=10)
    numbers = f"μ = {mu:.4g}\nβ = {model.beta:.4g}\nγ = {gamma:.4g}\nknee = {knee:.3g}"
    right.text(0.03, 0.96, numbers, transform=right.transAxes, va="top", fontsize=8, color="0.35")
    figure.suptitle(f"Potential of {name}", fontsize=11)
    figure.tight_layout()
    return figure


def scalings_figure(model: WcrrWeights, name: str = "model") -> Figure:
    """Draw ``α_l(σ) = exp(s_l(σ))/(σ + ε)`` of every channel over the noise level.

    Parameters
    ----------
    model : WcrrWeights
    name : str
        Name for the title.
    """
    unit, n_channels = model.sigma_unit, len(model.scaling)
    knots = np.linspace(0, model.sigma_max, model.scaling.shape[1]) * unit
    last = model.sigma_max * unit
    sigma = np.geomspace(min(last / 100, model.sigma_default / 2), last, 200)
    # The splines are linear between their knots.
    sigma = np.unique(np.concatenate([sigma, knots[knots > sigma[0]]]))
    alpha = np.stack([scaling(model, float(s)) for s in sigma], axis=1)
    order = np.argsort(-np.linalg.norm(_responses(model).reshape(n_channels, -1), axis=1), kind="stable")
    figure = _figure(7.0, 4.2)
    axes: Axes = figure.subplots()
    colours = _colours(n_channels)
    for place, channel in enumerate(order):
        axes.loglog(sigma, alpha[channel], color=colours[place], linewidth=1.0, label=str(channel))
    axes.axvline(model.sigma_default, color="0.4", linestyle="--", linewidth=0.9)
    axes.annotate(
        "default σ",
        (model.sigma_default, 0.02),
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
        f"α = exp(s(σ)) / (σ + {SIGMA_EPSILON:g}) of each channel, with σ in units of {unit:.3g} of the intensity scale"
    )
    axes.set_title(about, fontsize=8, color="0.35")
    figure.tight_layout()
    return figure


def _figure(width: float, height: float) -> Figure:
    """Return an off-screen figure; sizes in inches."""
    try:
        from matplotlib.figure import Figure  # an optional extra, and slow to import
    except ImportError as error:
        raise InvalidInputError("output: drawing needs matplotlib: pip install 'bigdeconv[plot]'.") from error
    return Figure(figsize=(width, height))


def _responses(model: WcrrWeights) -> Floats:
    """Return the filters of all layers together, ``channel z y x``, divided by the norm."""
    layers = [torch.as_tensor(layer, dtype=torch.float64) for layer in model.layers]
    return np.asarray(impulse_response(layers).numpy() / math.sqrt(model.lambda_max))


def _side_by_side(slices: Floats) -> Floats:
    """Join the slices of one filter in a row with blank gaps, as fractions of its largest value."""
    scaled = (slices / (np.abs(slices).max() or 1.0)).repeat(4, axis=1).repeat(4, axis=2)
    gap = np.full((scaled.shape[1], 2), np.nan)
    pieces = [piece for plane in scaled for piece in (plane, gap)][:-1]
    return np.concatenate(pieces, axis=1)


def _slices_text(shown: int, depth: int) -> str:
    if depth == 1:
        return "one plane, y down and x to the right"
    slices = f"the {shown} middle of {depth} planes" if shown < depth else f"all {depth} planes"
    return f"{slices} in z, from left to right"


def _colours(n: int) -> list[tuple[float, float, float, float]]:
    from matplotlib import colormaps

    if n <= 10:
        return [colormaps["tab10"](i) for i in range(n)]
    if n <= 20:
        return [colormaps["tab20"](i) for i in range(n)]
    return [colormaps["viridis"](i / (n - 1)) for i in range(n)]


def _rank_bar(figure: Figure, axes: Axes, n: int) -> None:
    """Add a colour bar that gives the rank of each line."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(1, n), "viridis"), ax=axes)
    bar.set_label("rank of the channel's filter by norm, 1 the largest", fontsize=8)
