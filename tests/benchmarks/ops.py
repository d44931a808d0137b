"""Kernels against their vectorised references, and against the bytes they must move.

    python -m tests.benchmarks.ops --device cpu
    python -m tests.benchmarks.ops --device cuda

CPU: nanoseconds per sample of kernel and reference, in one run. CUDA: milliseconds (median of event pairs) beside the time
that the bytes take at the measured copy bandwidth.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_nerf.encodings import HashGrid
from lightning_nerf.ops import composite, hash_grid, march
from lightning_nerf.types import Rays

COPY_BYTES_PER_SECOND = 4.29e12  # one H200, read plus written


def median_seconds(run: Callable[[], object], device: str, repeats: int) -> float:
    """Median time of ``run`` after two warm-up calls."""
    for _ in range(2):
        run()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(400_000)  # the calls are queued behind it: device time, not the host's
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


def sphere_scene(n_rays: int, resolution: int, device: str) -> tuple[Rays, Tensor, Tensor]:
    """Rays towards a thick spherical shell in [-1.5, 1.5]^3, and its occupancy grid."""
    generator = torch.Generator().manual_seed(0)
    origins = torch.nn.functional.normalize(torch.randn(n_rays, 3, generator=generator), dim=-1) * 4
    target = (torch.rand(n_rays, 3, generator=generator) - 0.5) * 2
    directions = torch.nn.functional.normalize(target - origins, dim=-1)
    axis = (torch.arange(resolution) + 0.5) / resolution * 3 - 1.5
    radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).norm(dim=-1)
    occupancy = ((radius > 0.9) & (radius < 1.02))[None]
    near, far = torch.zeros(n_rays), torch.full((n_rays,), 10.0)
    aabb = torch.tensor([[-1.5] * 3, [1.5] * 3])
    rays = Rays(*(t.to(device) for t in (origins, directions, near, far)))
    return rays, occupancy.to(device), aabb.to(device)


def gradient_run(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    """A call that runs ``function`` forward and backward."""
    inputs = [i.detach().requires_grad_() for i in inputs]
    with torch.no_grad():
        cotangent = torch.ones_like(function(*inputs))

    def run() -> object:
        return torch.autograd.grad(function(*inputs), inputs, cotangent)

    return run


def cpu(repeats: int) -> list[tuple[str, float, float, float]]:
    """Rows: name, ns per sample of the kernel, of the reference, asked ratio."""
    rows = []
    rays, occupancy, aabb = sphere_scene(4096, 128, "cpu")
    step = 3**0.5 * 3 / 1024
    samples = march.march(rays, occupancy, aabb, step_size=step)
    n = len(samples.t_starts)
    kernel = median_seconds(lambda: march.march(rays, occupancy, aabb, step_size=step), "cpu", repeats)
    reference = median_seconds(lambda: march.reference(rays, occupancy, aabb, step_size=step), "cpu", repeats)
    rows.append(("march", kernel / n * 1e9, reference / n * 1e9, 10.0))

    densities, channels = torch.rand(n) * 20, torch.rand(n, 3)
    fixed = (samples.t_starts, samples.t_ends, samples.offsets, 0.0, False)

    def composited(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
        return lambda d, c: function(d, c, *fixed)[0]

    kernel = median_seconds(
        gradient_run(composited(torch.ops.lightning_nerf.composite), [densities, channels]), "cpu", repeats
    )
    reference = median_seconds(gradient_run(composited(composite.reference), [densities, channels]), "cpu", repeats)
    rows.append(("composite forward + backward", kernel / n * 1e9, reference / n * 1e9, 4.0))

    encoding = HashGrid(n_levels=8, log2_table_size=16, max_resolution=512)
    positions = torch.rand(2**15, 3)
    levels = encoding.levels
    kernel = median_seconds(
        gradient_run(lambda t: torch.ops.lightning_nerf.hash_grid(positions, t, levels), [encoding.table]), "cpu", repeats
    )
    reference = median_seconds(
        gradient_run(lambda t: hash_grid.reference(positions, t, levels), [encoding.table]), "cpu", repeats
    )
    n = len(positions)
    rows.append(("hash_grid forward + backward", kernel / n * 1e9, reference / n * 1e9, 4.0))
    return rows


def cuda(repeats: int) -> list[tuple[str, float, float]]:
    """Rows: name, milliseconds, milliseconds of its bytes."""
    rows = []
    rays, occupancy, aabb = sphere_scene(131072, 128, "cuda")
    step = 0.0049
    samples = march.march(rays, occupancy, aabb, step_size=step)
    n, n_rays = len(samples.t_starts), len(rays.origins)
    print(f"{n_rays} rays, {n} samples")
    rows.append(
        (
            "march, capacity",
            median_seconds(lambda: march.march(rays, occupancy, aabb, step_size=step, capacity=n), "cuda", repeats),
            (12 * n + 40 * n_rays) / COPY_BYTES_PER_SECOND,
        )
    )
    densities, channels = torch.rand(n, device="cuda") * 20, torch.rand(n, 3, device="cuda")
    arguments = (samples.t_starts, samples.t_ends, samples.offsets)
    per_ray = 28 * n_rays
    for name, weights, eps in [
        ("composite forward", False, 0.0),
        ("composite forward, early stop 1e-4", False, 1e-4),
        ("composite forward, weights kept", True, 0.0),
    ]:
        rows.append(
            (
                name,
                median_seconds(
                    lambda w=weights, e=eps: torch.ops.lightning_nerf.composite(densities, channels, *arguments, e, w),
                    "cuda",
                    repeats,
                ),
                ((28 if weights else 24) * n + per_ray) / COPY_BYTES_PER_SECOND,
            )
        )
    with_grad = (densities.clone().requires_grad_(), channels.clone().requires_grad_())
    rows.append(
        (
            "composite forward, gradients wanted",
            median_seconds(lambda: torch.ops.lightning_nerf.composite(*with_grad, *arguments, 0.0, False), "cuda", repeats),
            (24 * n + per_ray) / COPY_BYTES_PER_SECOND,
        )
    )
    both = gradient_run(
        lambda d, c: torch.ops.lightning_nerf.composite(d, c, *arguments, 0.0, False)[0], [densities, channels]
    )
    rows.append(
        (
            "composite forward + backward",
            median_seconds(both, "cuda", repeats),
            (24 * n + 40 * n + 2 * per_ray) / COPY_BYTES_PER_SECOND,
        )
    )
    encoding = HashGrid().cuda()
    positions = torch.rand(2**18, 3, device="cuda")
    for dtype in (torch.float32, torch.float16):
        table = encoding.table.detach().to(dtype)
        name = f"hash_grid 2^18 random, {str(dtype).removeprefix('torch.')}"
        rows.append(
            (
                f"{name}, forward",
                median_seconds(
                    lambda t=table: torch.ops.lightning_nerf.hash_grid(positions, t, encoding.levels), "cuda", repeats
                ),
                float("nan"),
            )
        )
        run = gradient_run(lambda t: torch.ops.lightning_nerf.hash_grid(positions, t, encoding.levels), [table])
        rows.append((f"{name}, forward + backward", median_seconds(run, "cuda", repeats), float("nan")))
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=0, help="timed calls; default 9 on a CPU, 100 on CUDA")
    args = parser.parse_args()
    if args.device == "cpu":
        print(f"{'op':34} {'kernel':>10} {'reference':>10}  ns per sample, {torch.get_num_threads()} threads")
        for name, kernel, reference, asked in cpu(args.repeats or 9):
            print(f"{name:34} {kernel:10.1f} {reference:10.1f}  {reference / kernel:.1f}x (asked {asked:g}x)")
    else:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
        for name, seconds, floor in cuda(args.repeats or 100):
            print(f"{name:44} {1000 * seconds:8.4f} ms   bytes {1000 * floor:7.4f} ms   {seconds / floor:5.2f}x")


if __name__ == "__main__":
    main()
