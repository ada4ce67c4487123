"""Cores: binding, quotas, and shares among the processes of a machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dcae_cache.compute.cores import CoreBudget, core_shares, own_budget

WHOLE = frozenset(range(96))


def slices(count: int, width: int) -> list[CoreBudget]:
    return [CoreBudget(frozenset(range(n * width, (n + 1) * width))) for n in range(count)]


@pytest.mark.parametrize(
    ("budgets", "shares"),
    [
        ([CoreBudget(WHOLE)] * 8, [12] * 8),  # torchrun: all may run anywhere
        (slices(8, 12), [12] * 8),  # srun --cpus-per-task=12, numactl: each has its own
        ([CoreBudget(frozenset(range(12)))] * 8, [2, 1, 2, 1, 2, 1, 2, 1]),  # taskset around torchrun: 12 for all
        ([CoreBudget(WHOLE, 16.0, "pod")] * 8, [2] * 8),  # a pod with 16 of 96 cores
        ([CoreBudget(WHOLE, 6.0, f"task{n}") for n in range(4)], [6] * 4),  # a quota for each task
        ([CoreBudget(frozenset({0, 1})), CoreBudget(frozenset({1, 2, 3}))], [2, 3]),  # overlapping: half of core 1
        ([CoreBudget(frozenset({0}))] * 3, [1, 1, 1]),  # never none
        ([CoreBudget(WHOLE, 0.5, "small")], [1]),
    ],
)
def test_each_process_takes_what_is_its_own(budgets: list[CoreBudget], shares: list[int]) -> None:
    assert core_shares(budgets) == shares


def fake_system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, (2.5, "")),  # docker --cpus 2.5
        ("0::/\n", {"cpu.max": "max 100000\n"}, (None, "")),
        # the tightest on the way up counts, and the processes below it share it
        (
            "0::/kubepods/pod7/box\n",
            {"kubepods/pod7/box/cpu.max": "max 100000\n", "kubepods/pod7/cpu.max": "400000 100000\n"},
            (4.0, "kubepods/pod7"),
        ),
        (
            "4:cpu,cpuacct:/docker/x\n0::/\n",
            {"cpu,cpuacct/docker/x/cpu.cfs_quota_us": "150000", "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000"},
            (1.5, "docker/x"),
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, (None, "")),
        ("0::/\n", {"cpu.max": "nonsense"}, (None, "")),
    ],
)
def test_limits_of_cgroups(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: tuple[float | None, str]
) -> None:
    budget = own_budget(fake_system(tmp_path, cgroup, files))
    assert (budget.quota, budget.group) == expected


def test_a_bound_process_counts_its_own_cores() -> None:
    code = "import os; os.sched_setaffinity(0, [0]); from dcae_cache.compute.cores import *; print(default_workers())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
