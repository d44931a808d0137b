"""Whether a list fits in memory, asked before the memory is: a system that lends more than it has ends the process."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lightning_nerf.checks import BadArgument

SMALL = 2**28  # bytes that are not worth asking about
_BYTES_IN_LIST = 12  # of a sample: t_start, t_end, ray
_LIMITS = (  # of a container, and what it holds already
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def check_fits(
    name: str, count: int, bytes_each: int, device: torch.device, advice: str = "a smaller one", what: str = "samples"
) -> None:
    """Raise a BadArgument that names the argument, what came and how many fit, where there is no memory for so many."""
    if count * bytes_each <= SMALL:
        return
    free = available_bytes(device)
    if free is not None and count * bytes_each > free:
        needed, left = _gigabytes(count * bytes_each), _gigabytes(free)
        raise BadArgument(
            f"{name}: {count} {what} need {needed}, but {device.type} has {left} left, enough for {free // bytes_each}; "
            f"expected {advice}"
        )


def check_capacity_fits(capacity: int, device: torch.device) -> None:
    """:func:`check_fits` of a list of samples on a CPU; elsewhere asking takes long, and an allocator says it by itself."""
    if device.type == "cpu" and not torch.compiler.is_compiling():
        check_fits("capacity", capacity, _BYTES_IN_LIST, device)


def available_bytes(device: torch.device) -> int | None:
    """Bytes that may still be asked for on a device; None: unknown."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    free = [available for available in (_system_memory(), *map(_left_in, _LIMITS)) if available is not None]
    return min(free, default=None)


def _system_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _left_in(files: tuple[str, str]) -> int | None:
    try:
        limit, used = (int(Path(file).read_text()) for file in files)
    except (OSError, ValueError):  # no container, or "max"
        return None
    return max(0, limit - used)


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.3g} GB"
