"""The figures of the report; each function writes one PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import pyplot as plt
from panels import View, draw, interesting
from phantom import VOXEL_ZYX_UM
from reconstruct import problem

from bigdeconv import simulation
from bigdeconv.numerics.richardson_lucy import Problem, init, objective, step

if TYPE_CHECKING:
    from pathlib import Path

    from phantom import Scene
    from reconstruct import Method


def samples(path: Path, volumes: list[np.ndarray]) -> None:
    """Draw figure 1: a slice of each sample, and its depth in colours below it."""
    figure, axes = plt.subplots(2, len(volumes), figsize=(4.2 * len(volumes), 8.0), layout="constrained")
    for (above, below), volume in zip(axes.T, volumes, strict=True):
        plane = int(volume.sum(axis=(1, 2)).argmax())
        extent_um = (0, volume.shape[2] * VOXEL_ZYX_UM[2], volume.shape[1] * VOXEL_ZYX_UM[1], 0)
        above.imshow(volume[plane], cmap="gray", vmin=0, vmax=0.8 * volume[plane].max(), extent=extent_um)
        above.set_title(f"xy, z = {plane * VOXEL_ZYX_UM[0]:.2f} µm", fontsize=10)
        below.imshow(_depth_colours(volume), extent=extent_um)
        below.set_xlabel("x [µm]")
        for axis in (above, below):
            axis.set_ylabel("y [µm]")
    depth_um = volumes[0].shape[0] * VOXEL_ZYX_UM[0]
    scale = plt.cm.ScalarMappable(plt.Normalize(0, depth_um), "turbo")
    figure.colorbar(scale, ax=axes[1], label="z [µm]", shrink=0.8)
    figure.suptitle("Figure 1: simulated microtubules")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def convergence(path: Path, scene: Scene, method: Method, iterations: int) -> dict[str, list[float]]:
    """Draw figure 2: the distance of the objective from its least value, with momentum and without, and return the distances.

    The least value is the lowest of an accelerated pass that is five times as long.
    """
    accelerated = problem(scene, method)
    plain = Problem(**{**{f: getattr(accelerated, f) for f in Problem.__slots__}, "momentum": False})
    long = _objectives(accelerated, 5 * iterations)
    least = min(long)
    curves = {"GARL": long[: iterations + 1], "GRL (no momentum)": _objectives(plain, iterations)}
    gaps = {name: [value - least for value in values] for name, values in curves.items()}
    k = np.arange(1, iterations + 1)
    figure, axis = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
    for name, gap in gaps.items():
        axis.loglog(k, gap[1:], label=name)
    for name, power, style in (("GRL (no momentum)", 1, ":"), ("GARL", 2, "--")):
        middle = max(iterations // 10, 5)
        first = gaps[name][middle] * float(middle) ** power
        axis.loglog(k, first / k**power, style, color="gray", label=f"$O(1/k{'^2' if power == 2 else ''})$")
    axis.set(xlabel="iteration k", ylabel="$f(x^k) - f^*$", title="Figure 2: convergence")
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return gaps


def amplification(path: Path, estimates: dict[int, np.ndarray], view: View) -> None:
    """Draw figure 3: Richardson-Lucy over the iterations."""
    volumes = {f"RL {k}": estimate for k, estimate in estimates.items()}
    draw(path, volumes, view, "Figure 3: noise in Richardson-Lucy over the iterations")


def comparison(
    path: Path, scene: Scene, estimates: dict[str, dict[int, np.ndarray]], shown: dict[str, int], title: str
) -> None:
    """Draw figure 6, 7 or 8: measurement, confocal image, reconstructions and truth.

    Parameters
    ----------
    path : Path
    scene : Scene
    estimates : dict
        Estimates ``z y x`` of each method, by iteration.
    shown : dict of int
        Iteration to show of each label such as ``RL 20``.
    title : str
    """
    middle = len(scene.photons) // 2  # the 16th of 32 views
    volumes = {f"Meas. (view {middle})": scene.photons[middle - 1], "Confocal": simulation.confocal(scene.photons)}
    volumes |= {label: estimates[label.split()[0]][k] for label, k in shown.items()}
    volumes["GT"] = scene.truth
    draw(path, volumes, interesting(scene.truth), title)


def _depth_colours(volume: np.ndarray) -> np.ndarray:
    """Return ``y x rgb``: the brightest voxel of each column, coloured by its depth."""
    depth = volume.argmax(axis=0) / max(volume.shape[0] - 1, 1)
    brightness = np.clip(volume.max(axis=0) / (0.7 * volume.max()), 0, 1)
    return plt.get_cmap("turbo")(depth)[..., :3] * brightness[..., None]


@torch.inference_mode()
def _objectives(task: Problem, iterations: int) -> list[float]:
    state = init(task)
    values = [objective(task, state.x)]
    for _ in range(iterations):
        step(task, state)
        values.append(objective(task, state.x))
    return values
