"""Slabs of consecutive planes that fit the cache of a CPU core."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bigdeconv.planning.tuned import SLAB_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


def slabs(x: Tensor) -> Iterator[slice]:
    """Yield consecutive ranges of planes that together cover a volume: one range on a GPU, smaller ones on a CPU.

    Parameters
    ----------
    x : Tensor, ``z y x``
        The volume.

    Examples
    --------
    >>> list(slabs(torch.zeros(4, 8, 8)))
    [slice(0, 4, None)]
    """
    depth = len(x)
    if x.device.type == "cpu":
        plane_bytes = max(x.shape[1] * x.shape[2] * x.element_size(), 1)
        depth = max(SLAB_BYTES * torch.get_num_threads() // plane_bytes, 1)
    yield from (slice(z, min(z + depth, len(x))) for z in range(0, len(x), depth))
