"""How many processor cores a process may use, alone or beside others on its machine.

Binding (srun, numactl, taskset) and limits of cgroups (docker --cpus, Kubernetes) both count. Knows nothing of what
the cores are used for, or of how processes tell each other what they have.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CoreBudget:
    """What a process may use: the ``cores`` it may run on, and ``quota``, how many cores' worth of time its cgroup has
    (None: no limit), which all processes of that ``group`` share."""

    cores: frozenset[int]
    quota: float | None = None
    group: str = ""


def own_budget(system: Path = Path("/")) -> CoreBudget:
    """This process's. ``system``: the root folder that holds /proc and /sys."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    quota, group = _quota(system)
    return CoreBudget(frozenset(cores), quota, group)


def default_workers() -> int:
    """Decoding threads of a process that is alone on its machine: one for each core it may use, at least 1."""
    return core_shares([own_budget()])[0]


def core_shares(budgets: Sequence[CoreBudget]) -> list[int]:
    """How many cores each of these processes of one machine has for itself, at least 1.

    A core that several may run on is shared evenly among them, and so is a quota among the processes of its group;
    what doesn't divide goes to the first ones.
    """
    return [_share(budgets, number) for number in range(len(budgets))]


def _share(budgets: Sequence[CoreBudget], number: int) -> int:
    own = budgets[number]
    share = sum(Fraction(1, sum(core in other.cores for other in budgets)) for core in own.cores)
    if own.quota is not None:
        share = min(share, Fraction(own.quota) / sum(other.group == own.group for other in budgets))
    before = budgets[:number].count(own)  # of processes with the same budget: together they have what they share
    return max(1, math.ceil((before + 1) * share) - math.ceil(before * share))


def _quota(system: Path) -> tuple[float | None, str]:
    """The tightest limit on the way from this process's cgroup to the root, and which cgroup sets it."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None, ""
    found: list[tuple[float, str]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += _limits(system / "sys/fs/cgroup", path, _of_version_2)
        elif "cpu" in controllers.split(","):
            found += _limits(system / "sys/fs/cgroup" / controllers, path, _of_version_1)
            found += _limits(system / "sys/fs/cgroup/cpu", path, _of_version_1)
    return min(found) if found else (None, "")


def _limits(mount: Path, path: str, read: Callable[[Path], float | None]) -> list[tuple[float, str]]:
    """The limits of a cgroup and of all above it that have one."""
    parts = [part for part in path.split("/") if part and part != ".."]
    folders = ["/".join(parts[:depth]) for depth in range(len(parts), -1, -1)]
    limits = [(read(mount / folder), folder) for folder in folders]
    return [(limit, folder) for limit, folder in limits if limit is not None]


def _of_version_2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _of_version_1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return None if quota <= 0 else quota / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None
