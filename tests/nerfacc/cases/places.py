"""Boxes, grids, resampling and lenses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.strategies import leaves
from tests.nerfacc.cases.case import EPS, Case, part, row
from tests.nerfacc.scene import BOX, DOUBLING, random_grid, random_rays, samples_of
from tests.ops.harness import rand

EXACT = {"rtol": 0.0, "atol": 0.0}


def boxes() -> list[Case]:
    origins, directions = random_rays(300)
    directions[directions == 0] = 0.1
    low = rand(40, 3, seed=4, low=-4, high=3)
    aabbs = torch.cat([low, low + rand(40, 3, seed=5, low=0.1, high=3)], -1)
    rays = {"rays_o": origins, "rays_d": directions, "aabbs": aabbs}
    # A difference, and a product or quotient, of numbers up to 10, over directions of a thousandth.
    close = {"rtol": 2**-20, "atol": 1e-5}
    cases = []
    for limits in ({}, {"near_plane": 0.0, "far_plane": 100.0, "miss_value": -1.0}):  # beyond tmax, it clamps neither way
        form = "limits" if limits else ""
        cases.append(row("grid.ray_aabb_intersect", rays | limits, form=form, **close))
        cases.append(row("grid._ray_aabb_intersect", rays | limits, on_cpu=True, form=form, **close))
    # Sums over 40 boxes of terms up to t / direction, of numbers that both round alike.
    learned, of_grads = ("rays_o", "rays_d"), {"rtol": 100 * EPS, "atol": 1e-3}
    cases.append(row("grid._ray_aabb_intersect", rays, *learned, on_cpu=True, form="gradients", **of_grads))
    cases += [
        row("grid._enlarge_aabb", {"aabb": BOX, "factor": factor}, on_cpu=True, form=f"{factor}")
        for factor in (1, 2.0, 0.3)
    ]
    points = rand(500, 3, seed=12, low=-6, high=6)
    for data in (rand(3, 4, 5, 6, seed=13), random_grid(3, 4, 5, 6)):
        given = {"x": points, "data": data, "base_aabb": BOX}
        cases.append(row("grid._query", given, on_cpu=True, form=str(data.dtype), **EXACT))
    return cases


def few_apart(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Samples per ray and their lengths: it sums its lattice up, up to 1200 additions that are off by half the spacing of
    floats, 4.8e-7 for t from 8 to 16. So at the 100 planes that a ray may cross, lengths may differ by 5.8e-4 each."""
    assert expected[0].float().mean() > 10
    assert (actual[0] - expected[0]).abs().float().mean() < 3
    assert (actual[1] - expected[1]).abs().mean() < 0.058


def traversal() -> list[Case]:
    origins, directions = random_rays(500)
    directions[directions == 0] = 0.1  # its traversal compares cells' planes that are inf there
    directions /= directions.norm(dim=-1, keepdim=True)
    scene = {"rays_o": origins, "rays_d": directions, "binaries": random_grid(3, 16, 16, 16), "aabbs": DOUBLING}

    def of_rays(function: Any, **arguments: Any) -> list[Tensor]:
        intervals, found, _ = function(**arguments)
        _, t_starts, t_ends = samples_of(intervals, found)
        rays = found.ray_indices[found.is_valid]
        return [found.packed_info[:, 1], torch.zeros(500, device=rays.device).index_add_(0, rays, t_ends - t_starts)]

    def structures(function: Any, **arguments: Any) -> list[Tensor]:
        intervals, found, _ = function(**arguments)  # planes of rays that end are another thing here
        return [*leaves(intervals), *leaves(found)]

    # A ray along an axis through full cells, and steps of a power of 2: nothing is rounded.
    full = {
        "rays_o": torch.tensor([[-3.0, 0.1, 0.9], [-3.0, 9.0, 9.0], [-2.5, 0.3, 1.1]]),
        "rays_d": torch.tensor([[1.0, 2**-20, 2**-20]] * 3),
        "binaries": torch.ones(1, 4, 4, 4, dtype=torch.bool),
        "aabbs": DOUBLING[:1],
        "step_size": 0.25,
    }
    cases = [
        row("grid.traverse_grids", scene | options, through=of_rays, form=f"cone {options['cone_angle']}", close=few_apart)
        for options in ({"step_size": 0.01, "cone_angle": cone} for cone in (0.0, 0.01))
    ]
    limited = full | {
        "traverse_steps_limit": 3,
        "over_allocate": True,
        "rays_mask": torch.tensor([True, True, False]),
    }
    for form, scene_ in (("structures", full), ("structures, over-allocated", limited)):
        cases.append(row("grid.traverse_grids", scene_, through=structures, form=form, **EXACT))
    return cases


# Resampling.


def proper_cdf(n_rays: int, width: int) -> tuple[Tensor, Tensor]:
    """Ascending edges from 0 to 1, and a CDF that rises between any two of them by 0.3 / width at least."""
    inner = rand(n_rays, width - 2, seed=14).sort(-1).values
    rises = torch.cat([torch.zeros(n_rays, 1), rand(n_rays, width - 1, seed=15, low=0.4)], 1).cumsum(1)
    return torch.cat([torch.zeros(n_rays, 1), inner, torch.ones(n_rays, 1)], 1), rises / rises[:, -1:]


def listed(vals: Tensor) -> dict[str, Tensor]:
    n_rays, width = vals.shape
    begins = torch.arange(n_rays, device=vals.device) * width
    return {"vals": vals.flatten(), "packed_info": torch.stack([begins, torch.full_like(begins, width)], 1)}


def resampling() -> list[Case]:
    edges, cdfs = proper_cdf(200, 65)
    queries = rand(200, 30, seed=16, high=1.5)  # beyond the keys too, but not below: there it contradicts its own text
    slope = 65 / 0.3  # u to 4 roundings; t moves by 1 while u moves by 0.3 / 65 at the least, and an edge by twice that
    cases = []
    for form in ("rows", "packed_info"):
        spread: Callable[[Tensor], dict[str, Tensor]] = listed if form == "packed_info" else lambda v: {"vals": v}

        def resample(package: Any, device: str, n: int, form: Any = spread) -> list[Tensor]:
            intervals = part(package, "RayIntervals")(**form(edges.to(device)))
            new, found = part(package, "pdf.importance_sampling")(intervals, cdfs.to(device).view_as(intervals.vals), n)
            return [new.vals, found.vals]

        def search(package: Any, device: str, form: Any = spread) -> list[Tensor]:
            keys, values = (part(package, "RayIntervals")(**form(v.to(device))) for v in (edges, queries))
            return list(part(package, "pdf.searchsorted")(keys, values))

        cases.append(Case("pdf.searchsorted", search, False, form))
        for n in (2, 16, 100):
            run = functools.partial(resample, n=n)
            cases.append(Case("pdf.importance_sampling", run, False, f"{form} {n}", rtol=0.0, atol=2 * 4 * EPS * slope))
    for stratified in (False, True):
        options = {"num_samples": 20, "stratified": stratified, "vmin": 0.0, "vmax": 1.0}
        weighted = {"bins": edges, "weights": cdfs.diff(dim=-1)} | options
        path, form = "pdf._sample_from_weighted", f"stratified {stratified}"
        # The same operations, in the same order; a gradient passes the slope, and 64 terms of a sum.
        cases.append(row(path, weighted, on_cpu=True, form=form, rtol=0.0, atol=64 * EPS * slope))
        grads = {"rtol": 1e-3, "atol": 64 * 64 * EPS * slope}
        cases.append(row(path, weighted, "bins", "weights", on_cpu=True, form=f"{form}, gradients", **grads))
    return cases


def specs() -> list[Case]:
    def build(package: Any, device: str, name: str) -> list[Tensor]:
        values = rand(5, seed=17).to(device)
        flags = ["is_left", "is_right"] if name == "RayIntervals" else ["is_valid"]
        info = {"packed_info": torch.tensor([[0, 5]], device=device), "ray_indices": torch.zeros(5, dtype=torch.int64)}
        spec = part(package, name)(values, **info, **dict.fromkeys(flags, values > 0.5))
        assert list(spec.__dataclass_fields__) == ["vals", "packed_info", "ray_indices", *flags]
        assert spec.device == values.device
        assert all(v is None for k, v in vars(part(package, name)(values)).items() if k != "vals")
        return leaves(spec)

    names = ("RayIntervals", "RaySamples")
    return [Case(f"data_specs.{name}", functools.partial(build, name=name), True) for name in names]


def cameras() -> list[Case]:
    uv = rand(10, 100, 2, seed=20, low=-0.5, high=0.5)  # further out some points have no inverse
    cases = []
    for n, name, on_cpu in (
        *((n, "opencv_lens_undistortion", False) for n in (0, 1, 2, 4, 8)),
        *((n, "_opencv_lens_undistortion", True) for n in (0, 1, 2, 4, 8)),
        (4, "opencv_lens_undistortion_fisheye", False),
        (8, "_opencv_lens_distortion", True),
        (4, "_opencv_lens_distortion_fisheye", True),
    ):
        given = {"uv": uv, "params": rand(n, seed=21, low=-0.05, high=0.05)}
        learned = ("uv", "params") if "_distortion" in name else ()
        # Its steps end below eps = 1e-6, in float32; gradients in params are sums over 1000 points.
        close = {"rtol": 0.0, "atol": 1000 * EPS if learned else 3e-6}
        cases.append(row(f"cameras.{name}", given, *learned, on_cpu=on_cpu, form=str(n), **close))
    return cases
