"""Which kernels a stretch of training ran, by torch.profiler."""

from __future__ import annotations

import re
from collections import defaultdict

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from lightning_nerf.bench.table import Report

_WAITS = ("Context Sync", "Stream Sync", "Event Sync", "Stream Wait")
_OP = re.compile(r"\blightning_nerf::(\w+)(?:::|$)")


def op_of(kernel: str) -> str | None:
    """The op of this library that a kernel belongs to: its C++ namespace. None for a kernel of another library.

    >>> op_of("void lightning_nerf::march::count_kernel<true>(lightning_nerf::march::Arguments, int*)")
    'march'
    """
    found = _OP.search(kernel)
    return found[1] if found else None


def profiler(device: torch.device) -> profile:
    """A profiler of the device's kernels alone, so that it costs the host little; on a CPU, of its ops."""
    return profile(activities=[ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU])


def kernel_table(stopped: profile, steps: int, device: torch.device) -> list[Report]:
    """Each kernel's calls and microseconds per step and its share of the sum, the longest first. On a CPU: self time."""
    calls: dict[str, int] = defaultdict(int)
    microseconds: dict[str, float] = defaultdict(float)
    cuda = device.type == "cuda"
    for event in stopped.events() or []:
        if (event.device_type == DeviceType.CUDA) != cuda or getattr(event, "is_user_annotation", False):
            continue
        if event.name.startswith(_WAITS):
            continue
        calls[event.name] += 1
        microseconds[event.name] += event.time_range.elapsed_us() if cuda else event.self_cpu_time_total
    total = sum(microseconds.values()) or 1.0
    return [
        {
            "kernel": name,
            "op": op_of(name),
            "calls_per_step": calls[name] / steps,
            "us_per_step": spent / steps,
            "percent": 100 * spent / total,
        }
        for name, spent in sorted(microseconds.items(), key=lambda item: -item[1])
    ]
