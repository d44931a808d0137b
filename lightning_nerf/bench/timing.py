"""Clocks, and the hardware's limits that times are compared with."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

import lightning_nerf
from lightning_nerf.bench.table import Report
from lightning_nerf.ops import library


class Work(NamedTuple):
    """The least that a computation must do, whatever the code."""

    bytes: float = 0.0  # read and written in device memory, each tensor once
    flops: float = 0.0
    gathers: float = 0.0  # loads of up to 8 bytes (16 for wider rows) at random addresses of a table
    atomics: float = 0.0  # additions of two float32 at random addresses


class Limits(NamedTuple):
    """What a device can do per second; None where that was not measured."""

    bytes: float | None = None  # of a copy, read plus written
    flops: float | None = None  # bf16 matrix products
    gathers: float | None = None
    atomics: float | None = None

    def seconds(self, work: Work) -> float:
        """The time that the scarcest of these leaves for ``work``; NaN where none is known."""
        known = [amount / rate for amount, rate in zip(work, self, strict=True) if amount and rate]
        return max(known, default=float("nan"))


# One H200. Gathers: 2^24 random loads of 8 bytes from a table of 2^19 rows in 0.11 ms. Atomics: 2^25 of float2 in 0.36 ms.
H200 = Limits(bytes=4.29e12, flops=785e12, gathers=1.5e11, atomics=9.3e10)


def limits_of(device: str) -> Limits:
    """The constants of an H200; measured rates of any other device (a CPU: of its copies only)."""
    if device == "cuda" and "H200" in torch.cuda.get_device_name():
        return H200
    if device == "cpu":
        return Limits(bytes=_copy_rate(device, 2**26))
    return Limits(bytes=_copy_rate(device, 2**30), flops=_matmul_rate(8192))


def _copy_rate(device: str, size: int) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device, 5)


def _matmul_rate(size: int) -> float:
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, "cuda", 5)


def median_seconds(run: Callable[[], object], device: str, repeats: int) -> float:
    """Median time of ``run`` after two warm-up calls; on CUDA device time, from an event before it to one behind it.

    There each call is queued behind a sleep of the device that is a little longer than the host takes to launch it: the
    device then never waits for the host, unless ``run`` itself synchronizes.
    """
    host = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        run()
        host = time.perf_counter() - begin
        wait(device)
    times = []
    for _ in range(repeats):
        if device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(int(min(max(1.5 * host, 2e-4), 5e-3) * 2e9))  # in cycles
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1000)
        else:
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def wait(device: str | torch.device) -> None:
    """Until the device has done all that it was told."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def peak_memory_gib(device: str | torch.device) -> float | None:
    """Largest ``memory_allocated`` since the last reset; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.device(device).type == "cuda" else None


def reserved_memory_gib(device: str | torch.device) -> float | None:
    """Largest ``memory_reserved`` since the last reset, pools of graphs included; None on a CPU."""
    return torch.cuda.max_memory_reserved() / 2**30 if torch.device(device).type == "cuda" else None


def environment(device: str | torch.device) -> Report:
    """What figures depend on."""
    cuda = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "lightning_nerf": lightning_nerf.__version__,
        "kernels": library.loaded,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
    }
