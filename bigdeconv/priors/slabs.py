"""Planes of a volume that fit a core's cache together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

SLAB_BYTES = 2**19
"""Part of a volume that a CPU core takes at a time, so that it stays in the cache; a GPU takes all at once."""


def slabs(x: Tensor) -> Iterator[slice]:
    """Yield consecutive planes that together are all of a ``z y x`` volume's."""
    depth = len(x)
    if x.device.type == "cpu":
        plane_bytes = max(x.shape[1] * x.shape[2] * x.element_size(), 1)
        depth = max(SLAB_BYTES * torch.get_num_threads() // plane_bytes, 1)
    yield from (slice(z, min(z + depth, len(x))) for z in range(0, len(x), depth))
