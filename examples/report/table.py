"""Table 1: the regressed SNR of every method over the iterations, as JSON and Markdown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from reconstruct import MARKS

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, result: dict[str, Any]) -> None:
    """Write table1.json and table1.md."""
    (folder / "table1.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "table1.md").write_text(markdown(result), encoding="utf-8")


def gain_db(rsnr_db: dict[str, dict[int, float]]) -> float:
    """Return the gain of GARL at the last iteration over the best of RL, in dB."""
    return rsnr_db["GARL"][MARKS[-1]] - max(rsnr_db["RL"].values())


def markdown(result: dict[str, Any]) -> str:
    """Return the table with the settings behind it."""
    lines = [
        f"Regressed SNR [dB], {result['views']} views of {'×'.join(map(str, result['zyx_shape']))} voxels, "
        f"seed {result['seed']}, model {result['model']}",
        "",
        f"| method | {' | '.join(f'{k} iterations' for k in MARKS)} | settings |",
        f"|---|{'---|' * len(MARKS)}---|",
    ]
    for name, row in result["rsnr_db"].items():
        settings = ", ".join(f"{key} {value:.3g}" for key, value in result["settings"][name].items() if value)
        lines.append(f"| {name} | {' | '.join(f'{row[k]:.2f}' for k in MARKS)} | {settings} |")
    lines += [
        "",
        f"GARL at {MARKS[-1]} iterations exceeds the best of RL by {result['gain_db']:+.2f} dB; "
        f"photons at the intensity scale: {result['intensity_scale']:.1f} per view.",
        "",
    ]
    return "\n".join(lines)
