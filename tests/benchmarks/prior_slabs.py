"""Cost of the learned prior's gradient against the memory of its slabs, one thread; and under Dask's malloc settings.

python tests/benchmarks/prior_slabs.py
MALLOC_TRIM_THRESHOLD_=65536 python tests/benchmarks/prior_slabs.py
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python tests/benchmarks/prior_slabs.py
"""

from __future__ import annotations

import resource
import time

import torch

from bigdeconv import models
from bigdeconv.priors.wcrr import Wcrr

SHAPE = (60, 100, 110)
REPEATS = 3


def measure(slab_mib: float) -> None:
    x = torch.rand(SHAPE)
    prior = Wcrr(models.resolve("default"), sigma=10 / 255, slab_bytes=int(slab_mib * 2**20))
    prior.gradient(x)
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(REPEATS):
        prior.gradient(x)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    wall, user, system = (seconds / (REPEATS * x.numel()) * 1e9 for seconds in (wall, user, system))
    print(f"{slab_mib:7.2f} MiB  {wall:6.0f} ns/voxel wall  {user:6.0f} user  {system:6.0f} system", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.inference_mode():
        for mib in (0.5, 1, 2, 4, 8, 64, 512):
            measure(mib)
