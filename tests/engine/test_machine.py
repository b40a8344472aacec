"""Cores and memory that this process may use: limits of containers and of batch jobs, nested ones too."""

from __future__ import annotations

import pytest

from bigdeconv.engine import machine

GIB = 2**30
NO_LIMIT_IN_VERSION_1 = "9223372036854771712"


def tree(root, files):
    """Write the files of control groups."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")


def limit(tmp_path, membership, files):
    """Return the limit that is found for a process in the named groups."""
    root, file = tmp_path / "cgroup", tmp_path / "membership"
    root.mkdir()
    tree(root, files)
    file.write_text(membership)
    return machine.cgroup_memory_bytes(file, root)


STEP = "system.slice/slurmstepd.scope/job_7/step_0/user/task_0"


class TestVersion2:
    MEMBERSHIP = f"0::/{STEP}\n"

    @pytest.mark.parametrize(
        ("files", "found"),
        {
            "none": ({}, None),
            "max everywhere": ({f"{STEP}/memory.max": "max", "memory.max": "max"}, None),
            "own": ({f"{STEP}/memory.max": 3 * GIB}, 3 * GIB),
            "of the step": (
                {f"{STEP}/memory.max": "max", "system.slice/slurmstepd.scope/job_7/step_0/memory.max": 5 * GIB},
                5 * GIB,
            ),
            "the job's is smaller": (
                {
                    f"{STEP}/memory.max": 8 * GIB,
                    "system.slice/slurmstepd.scope/job_7/memory.max": 2 * GIB,
                    "memory.max": 64 * GIB,
                },
                2 * GIB,
            ),
            "the outermost is smaller": ({f"{STEP}/memory.max": 8 * GIB, "memory.max": 1 * GIB}, 1 * GIB),
            "a neighbour's does not count": ({"system.slice/slurmstepd.scope/job_8/memory.max": 1 * GIB}, None),
            "not a number": ({f"{STEP}/memory.max": "", "memory.max": 4 * GIB}, 4 * GIB),
        }.values(),
    )
    def test_the_smallest_on_the_way_to_the_root(self, tmp_path, files, found):
        assert limit(tmp_path, self.MEMBERSHIP, files) == found

    def test_a_process_in_the_root_group(self, tmp_path):
        assert limit(tmp_path, "0::/\n", {"memory.max": 6 * GIB}) == 6 * GIB

    def test_a_group_that_lies_outside_of_what_is_mounted(self, tmp_path):
        """In a namespace, a group beside its root begins with ``..``."""
        assert limit(tmp_path, "0::/../beside\n", {"memory.max": 6 * GIB}) == 6 * GIB


class TestVersion1:
    MEMBERSHIP = "12:cpuset:/\n9:memory:/slurm/uid_1/job_7/step_0\n4:cpu,cpuacct:/slurm\n1:name=systemd:/init.scope\n"

    @pytest.mark.parametrize(
        ("files", "found"),
        {
            "none": ({}, None),
            "no limit": ({"memory/slurm/uid_1/job_7/step_0/memory.limit_in_bytes": NO_LIMIT_IN_VERSION_1}, None),
            "own": ({"memory/slurm/uid_1/job_7/step_0/memory.limit_in_bytes": 3 * GIB}, 3 * GIB),
            "the job's is smaller": (
                {
                    "memory/memory.limit_in_bytes": NO_LIMIT_IN_VERSION_1,
                    "memory/slurm/uid_1/job_7/memory.limit_in_bytes": 2 * GIB,
                    "memory/slurm/uid_1/job_7/step_0/memory.limit_in_bytes": 4 * GIB,
                },
                2 * GIB,
            ),
            "another controller's does not count": ({"cpu,cpuacct/slurm/memory.limit_in_bytes": 1 * GIB}, None),
        }.values(),
    )
    def test_the_smallest_on_the_way_to_the_root(self, tmp_path, files, found):
        assert limit(tmp_path, self.MEMBERSHIP, files) == found

    def test_a_controller_that_is_mounted_with_others(self, tmp_path):
        files = {"memory/job/memory.limit_in_bytes": 2 * GIB}
        assert limit(tmp_path, "5:hugetlb,memory:/job\n", files) == 2 * GIB


def test_both_versions_at_once(tmp_path):
    files = {"memory/job/memory.limit_in_bytes": 3 * GIB, "job/memory.max": 2 * GIB}
    assert limit(tmp_path, "9:memory:/job\n0::/job\n", files) == 2 * GIB


def test_where_there_are_no_control_groups(tmp_path):
    assert machine.cgroup_memory_bytes(tmp_path / "none", tmp_path) is None


def test_this_process_has_no_more_than_its_machine():
    import psutil

    assert 0 < machine.memory_bytes() <= psutil.virtual_memory().total
    assert machine.n_cores() >= 1


@pytest.mark.parametrize(("nested", "expected"), [(None, 8 * GIB), (3 * GIB, 3 * GIB), (16 * GIB, 8 * GIB)])
def test_a_nested_limit_lowers_that_of_the_machine_and_never_raises_it(nested, expected, monkeypatch):
    monkeypatch.setattr(machine, "memory_limit", lambda: 8 * GIB)
    monkeypatch.setattr(machine, "cgroup_memory_bytes", lambda: nested)
    assert machine.memory_bytes() == expected


def test_local_workers_share_what_the_step_of_a_batch_job_has(monkeypatch):
    """With ``--workers 2`` and 10 GiB for the step, a worker plans with half of its share, not of the machine's memory."""
    from bigdeconv.config import make_config
    from bigdeconv.jobs import resources

    monkeypatch.setattr(machine, "memory_limit", lambda: 500 * GIB)
    monkeypatch.setattr(machine, "cgroup_memory_bytes", lambda: 10 * GIB)
    monkeypatch.setattr(machine, "n_cores", lambda: 8)
    places = {"input": "in.zarr", "output": "out.zarr", "device": "cpu"}
    found = resources.find_resources(make_config(places | {"workers": 2}))
    assert (found.workers, found.threads) == (2, 4)
    assert found.budget_bytes == int(resources.MEMORY_SHARE * 10 * GIB / 2)
    automatic = resources.find_resources(make_config(places))
    assert automatic.workers == int(resources.MEMORY_SHARE * 10 * GIB) // resources.MIN_WORKER_BYTES
