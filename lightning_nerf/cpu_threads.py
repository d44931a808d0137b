"""How torch's CPU threads wait for each other, and how many CPUs they have. Needs no torch.

A step on a CPU is about a hundred short parallel regions: matrix products, elementwise operations, kernels of this package.
Between two of them the threads of OpenMP spin for some milliseconds, unless they are told to sleep. On an idle machine that
saves a few microseconds a region. Where another process wants the same cores, the system takes a core from the thread that
used up its share by spinning, and each region waits until it gets one back: a step takes ten times as long or more.
"""

from __future__ import annotations

import os
from pathlib import Path

WAIT_POLICY = "OMP_WAIT_POLICY"
_ALSO_SAY_HOW = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # of GNU's and of LLVM's OpenMP


def sleep_while_waiting() -> None:
    """Have threads sleep while they wait, unless the environment says how they wait.

    OpenMP reads the environment once, when torch is imported: this is for programs that have not imported it yet.
    """
    if not says_how_to_wait():
        os.environ[WAIT_POLICY] = "passive"


def says_how_to_wait() -> bool:
    """Whether the environment tells OpenMP how threads wait."""
    return any(name in os.environ for name in (WAIT_POLICY, *_ALSO_SAY_HOW))


def threads_spin() -> bool:
    """Whether threads of a process with this environment spin while they wait."""
    for name in _ALSO_SAY_HOW:  # they win over the policy
        if name in os.environ:
            return os.environ[name].strip() != "0"
    return os.environ.get(WAIT_POLICY, "").strip().lower() != "passive"


def usable_cpus(root: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that this process may use: its affinity, and the limit of its container, which OpenMP does not know of.

    Args:
        root: where the control groups are.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _container_limit(root)
    return count if limit is None else max(1, min(count, round(limit)))


def _container_limit(root: Path) -> float | None:
    """CPUs that a container's quota amounts to; None: no quota."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # of version 2, of version 1
        try:
            quota, period = " ".join((root / name).read_text() for name in names).split()
            if quota != "max" and int(quota) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):
            continue
    return None
