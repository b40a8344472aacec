"""A plan as plain values, as `bigdeconv plan --json` prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bigdeconv.jobs.space import space_of

if TYPE_CHECKING:
    from bigdeconv.jobs.facts import JobPlan


def plan_values(plan: JobPlan) -> dict[str, Any]:
    """Return a plan as plain values; shapes in voxels z y x, sizes in bytes, times in seconds."""
    facts, largest = plan.facts, plan.facts.largest_plan
    space = space_of(facts)
    return {
        "volumes": len(facts.volumes),
        "n_blocks": facts.n_blocks,
        "blocks_skipped": facts.blocks_outside,
        "block_shape": largest.core_shape,
        "halo": largest.halo,
        "blend": largest.blend,
        "fft_shape": largest.fft_shape,
        "chunk_shape": largest.levels[0].chunk_shape,
        "shard_shape": largest.levels[0].shard_shape,
        "levels": [level.shape for level in largest.levels],
        "peak_bytes_per_worker": largest.peak_bytes_per_worker,
        "memory": dict(largest.memory),
        "peak_bytes_per_device": largest.peak_bytes_per_device,
        "device_memory": dict(largest.device_memory),
        "peak_bytes_driver": sum(size for _, size in plan.driver_memory),
        "driver_memory": dict(plan.driver_memory),
        "output_bytes": space.output_bytes,
        "output_files": space.n_files,
        "output_folders": space.n_folders,
        "rim_bytes": largest.overlap_bytes if largest.has_overlaps else 0,
        "read_amplification": round(largest.read_amplification, 3),
        "compute_amplification": round(largest.compute_amplification, 3),
        "decode_amplification": round(largest.decode_amplification, 3),
        "cpu_seconds_per_block": round(plan.seconds_per_block, 2),
        "estimated_seconds": round(plan.wall_seconds, 1),
        "predicted_seam_error": _rounded(largest.predicted_seam_error),
        "predicted_seam_errors": [_rounded(e) for e in largest.seam_errors],
        "seam_tolerance": facts.config.seam_tolerance,
        "workers": facts.resources.workers,
        "threads_per_worker": facts.resources.threads,
        "device": facts.resources.device,
        "volume_shape": largest.zyx_shape,
        "voxel_um": facts.first_volume.voxel_zyx_um,
        "output_shape": largest.roi.shape,
        "timepoints": len(largest.timepoints),
        "channels": len(largest.channels),
        "views": plan.n_views,
        "psf_shape": largest.psf_shape,
        "method": facts.config.method,
        "iterations": facts.settings.iterations,
        "warnings": list(plan.warnings),
    }


def _rounded(error: float | None) -> float | None:
    return None if error is None else float(f"{error:.2g}")
