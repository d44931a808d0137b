"""A proper call of each public function: what to spoil, argument by argument."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import lightning_nerf
from lightning_nerf import OccupancyGrid, nerfacc
from lightning_nerf.nerfacc.cameras import opencv_lens_undistortion, opencv_lens_undistortion_fisheye
from lightning_nerf.nerfacc.losses import distortion
from lightning_nerf.nerfacc.volrend import accumulate_along_rays_
from lightning_nerf.ops.composite import composite, composite_alphas

Call = tuple[Callable[..., Any], dict[str, Any]]

COUNTS = [3, 0, 4]
N, RAYS = 7, 3


def _packed(device: str) -> dict[str, Tensor]:
    """Seven samples of three rays, in all forms."""
    t = torch.linspace(0, 1, N + 1, device=device)
    return {
        "t_starts": t[:-1].clone(),
        "t_ends": t[1:].clone(),
        "sigmas": torch.full((N,), 0.5, device=device),
        "channels": torch.full((N, 3), 0.5, device=device),
        "ray_indices": torch.tensor([0, 0, 0, 2, 2, 2, 2], device=device),
        "packed_info": torch.tensor([[0, 3], [3, 0], [3, 4]], device=device),
        "offsets": torch.tensor([0, 3, 3, 7], dtype=torch.int32, device=device),
    }


def _composite(device: str, *, alphas: bool) -> Call:
    p = _packed(device)
    absorbers = {"alphas" if alphas else "densities": p["sigmas"]}
    rest = {k: p[k] for k in ("channels", "t_starts", "t_ends", "offsets")}
    options = {"early_stop_eps": 0.0, "background": torch.ones(3, device=device)}
    return (composite_alphas if alphas else composite), {**absorbers, **rest, **options}


def _rendering(function: Callable[..., Any], name: str, device: str) -> Call:
    """The function's results are arguments here, spoilt like all others."""
    p = _packed(device)

    def render(rgbs: Tensor, sigmas: Tensor, feature: Tensor, **rest: Any) -> Any:
        return function(**{name: lambda *_: (rgbs, sigmas, {"feature": feature})}, **rest)

    rest = {k: p[k] for k in ("t_starts", "t_ends", "ray_indices")}
    results = {"rgbs": p["channels"], "sigmas": p["sigmas"], "feature": p["channels"].clone()}
    return render, {**results, **rest, "n_rays": RAYS, "render_bkgd": torch.ones(3, device=device)}


def _batched(device: str) -> Call:
    render, arguments = _rendering(nerfacc.rendering, "rgb_sigma_fn", device)
    rows = {k: v.repeat(2, *[1] * v.ndim) for k, v in arguments.items() if k in ("t_starts", "t_ends", "rgbs", "sigmas")}
    return render, {**rows, "feature": rows["rgbs"].clone(), "render_bkgd": arguments["render_bkgd"]}


def _rays(device: str) -> dict[str, Tensor]:
    return {"rays_o": torch.zeros(RAYS, 3, device=device), "rays_d": torch.eye(3, device=device)}


def _grid_sampling(device: str, *, name: str) -> Call:
    grid = OccupancyGrid(resolution=4).bind([-1, -1, -1, 1, 1, 1]).to(device)
    limits = {"t_min": torch.zeros(RAYS, device=device), "t_max": torch.ones(RAYS, device=device)}

    def sampling(values: Tensor, **rest: Any) -> Any:
        return grid.sampling(**{name: lambda *_: values}, **rest)

    n = len(grid.sampling(**_rays(device), **limits, render_step_size=0.1)[0])
    numbers = {"near_plane": 0.0, "far_plane": 1e9, "render_step_size": 0.1, "cone_angle": 0.0}
    thresholds = {"early_stop_eps": 1e-4, "alpha_thre": 0.01}
    return sampling, {"values": torch.ones(n, device=device), **_rays(device), **limits, **numbers, **thresholds}


def _occ_grid_sampling(device: str, *, name: str) -> Call:
    estimator = nerfacc.OccGridEstimator([-1, -1, -1, 1, 1, 1], 4).to(device)
    estimator.binaries.fill_(True)
    _, arguments = _grid_sampling(device, name=name)

    def sampling(values: Tensor, **rest: Any) -> Any:
        return estimator.sampling(**{name: lambda *_: values}, **rest)

    return sampling, arguments


def _update(device: str) -> Call:
    grid = OccupancyGrid(resolution=4).bind([-1, -1, -1, 1, 1, 1]).to(device)
    return lambda values, step: grid.update(lambda _: values, step=step), {
        "values": torch.ones(64, device=device),
        "step": 0,
    }


def _occ_update(device: str) -> Call:
    estimator = nerfacc.OccGridEstimator([-1, -1, -1, 1, 1, 1], 4).to(device)

    def update(values: Tensor, **rest: Any) -> None:
        estimator.update_every_n_steps(occ_eval_fn=lambda _: values, **rest)

    numbers = {"step": 0, "occ_thre": 0.01, "ema_decay": 0.95, "warmup_steps": 256, "n": 16}
    return update, {"values": torch.ones(64, device=device), **numbers}


def _bind(device: str) -> Call:
    grid = OccupancyGrid(resolution=4).to(device)
    return grid.bind, {"scene_box": torch.tensor([-1.0, -1, -1, 1, 1, 1], device=device)}


def _occ_init(device: str) -> Call:
    roi = torch.tensor([-1.0, -1, -1, 1, 1, 1], device=device)
    return nerfacc.OccGridEstimator, {"roi_aabb": roi, "resolution": 4, "levels": 2}


def _volrend(function: Callable[..., Any], layout: str, names: tuple[str, ...], device: str) -> Call:
    p = {**_packed(device), "alphas": torch.full((N,), 0.5, device=device)}
    where = {"ray_indices": p["ray_indices"], "n_rays": RAYS} if layout == "ray_indices" else {layout: p[layout]}
    return function, {**{k: p[k].clone() for k in names}, **where, "prefix_trans": torch.ones(N, device=device)}


def _accumulate(device: str, *, in_place: bool) -> Call:
    p = _packed(device)
    arguments = {"weights": p["sigmas"], "values": p["channels"], "ray_indices": p["ray_indices"]}
    if in_place:
        return accumulate_along_rays_, {**arguments, "outputs": torch.zeros(RAYS, 3, device=device)}
    return nerfacc.accumulate_along_rays, {**arguments, "n_rays": RAYS}


def _scan(function: Callable[..., Any], layout: str, device: str) -> Call:
    p = _packed(device)
    return function, {"inputs": p["sigmas"], layout: p["ray_indices" if layout == "indices" else layout]}


def _distortion(device: str) -> Call:
    p = _packed(device)
    samples = {"weights": p["sigmas"], "t_starts": p["t_starts"], "t_ends": p["t_ends"]}
    return distortion, {**samples, "ray_indices": p["ray_indices"], "n_rays": RAYS}


def _importance(device: str, *, packed: bool, several: bool) -> Call:
    def resample(vals: Tensor, cdfs: Tensor, n_intervals_per_ray: Any, packed_info: Tensor | None = None) -> Any:
        return nerfacc.importance_sampling(nerfacc.RayIntervals(vals, packed_info), cdfs, n_intervals_per_ray, True)

    p = _packed(device)
    number = {"n_intervals_per_ray": torch.tensor([1, 0, 2], device=device) if several else 4}
    if packed:
        return resample, {"vals": p["t_starts"], "cdfs": p["t_ends"], "packed_info": p["packed_info"], **number}
    rows = p["t_starts"].repeat(RAYS, 1)
    return resample, {"vals": rows, "cdfs": rows.clone(), **number}


def _searchsorted(device: str, *, packed: bool) -> Call:
    def search(vals: Tensor, values: Tensor, packed_info: Any = None, ray_indices: Any = None) -> Any:
        queries = nerfacc.RaySamples(values, ray_indices=ray_indices)
        return nerfacc.searchsorted(nerfacc.RayIntervals(vals, packed_info), queries)

    p = _packed(device)
    if packed:
        lists = {"packed_info": p["packed_info"], "ray_indices": p["ray_indices"]}
        return search, {"vals": p["t_starts"], "values": p["t_ends"], **lists}
    return search, {"vals": p["t_starts"].repeat(RAYS, 1), "values": p["t_ends"].repeat(RAYS, 1)}


def _traverse(device: str) -> Call:
    planes = {"near_planes": torch.zeros(RAYS, device=device), "far_planes": torch.ones(RAYS, device=device)}
    boxes = {
        "binaries": torch.ones(1, 2, 2, 2, dtype=torch.bool, device=device),
        "aabbs": torch.tensor([[-1.0, -1, -1, 1, 1, 1]], device=device),
        "rays_mask": torch.ones(RAYS, dtype=torch.bool, device=device),
    }
    numbers = {"step_size": 0.1, "cone_angle": 0.0, "traverse_steps_limit": 4, "over_allocate": True}
    return nerfacc.traverse_grids, {**_rays(device), **boxes, **planes, **numbers}


def _intersect(device: str) -> Call:
    aabbs = torch.tensor([[-1.0, -1, -1, 1, 1, 1]], device=device)
    limits = {"near_plane": 0.0, "far_plane": 1e9, "miss_value": 0.0}
    return nerfacc.ray_aabb_intersect, {**_rays(device), "aabbs": aabbs, **limits}


def _mark(device: str) -> Call:
    estimator = nerfacc.OccGridEstimator([-1, -1, -1, 1, 1, 1], 4).to(device)
    cameras = {"K": torch.eye(3, device=device)[None], "c2w": torch.eye(4, device=device)[None]}
    return estimator.mark_invisible_cells, {**cameras, "width": 8, "height": 8, "near_plane": 0.1, "chunk": 32}


def _undistort(function: Callable[..., Any], device: str, n: int) -> Call:
    uv, params = torch.full((RAYS, 2), 0.1, device=device), torch.full((RAYS, n), 0.01, device=device)
    return function, {"uv": uv, "params": params, "eps": 1e-6, "iters": 5}


def _prop_net(device: str) -> Call:
    estimator = nerfacc.PropNetEstimator().to(device)

    def sample(sigmas: Tensor, prop_samples: int, trans: Tensor, **rest: Any) -> Any:
        estimator.sampling([lambda *_: sigmas], [prop_samples], **rest, requires_grad=True)
        return estimator.compute_loss(trans)

    numbers = {"prop_samples": 4, "num_samples": 5, "n_rays": RAYS, "near_plane": 0.1, "far_plane": 4.0}
    tensors = {"sigmas": torch.ones(RAYS, 4, device=device), "trans": torch.ones(RAYS, 5, device=device)}
    return sample, {**tensors, **numbers}


_FROM_DENSITY = ("t_starts", "t_ends", "sigmas")

CALLS: dict[str, Callable[[str], Call]] = {
    "composite": lambda d: _composite(d, alphas=False),
    "composite_alphas": lambda d: _composite(d, alphas=True),
    "rendering": lambda d: _rendering(lightning_nerf.rendering, "rgb_sigma_fn", d),
    "rendering alphas": lambda d: _rendering(lightning_nerf.rendering, "rgb_alpha_fn", d),
    "nerfacc.rendering": lambda d: _rendering(nerfacc.rendering, "rgb_sigma_fn", d),
    "nerfacc.rendering batched": _batched,
    "OccupancyGrid.sampling": lambda d: _grid_sampling(d, name="sigma_fn"),
    "OccupancyGrid.sampling alphas": lambda d: _grid_sampling(d, name="alpha_fn"),
    "OccupancyGrid.update": _update,
    "OccupancyGrid.bind": _bind,
    "OccGridEstimator": _occ_init,
    "OccGridEstimator.sampling": lambda d: _occ_grid_sampling(d, name="sigma_fn"),
    "OccGridEstimator.sampling alphas": lambda d: _occ_grid_sampling(d, name="alpha_fn"),
    "OccGridEstimator.update_every_n_steps": _occ_update,
    "OccGridEstimator.mark_invisible_cells": _mark,
    "PropNetEstimator": _prop_net,
    **{
        f"{name} {layout}": partial(
            _volrend, getattr(nerfacc, name), layout, _FROM_DENSITY if "density" in name else ("alphas",)
        )
        for layout in ("packed_info", "ray_indices")
        for name in (
            "render_weight_from_alpha",
            "render_weight_from_density",
            "render_transmittance_from_alpha",
            "render_transmittance_from_density",
            "render_visibility_from_alpha",
            "render_visibility_from_density",
        )
    },
    "accumulate_along_rays": lambda d: _accumulate(d, in_place=False),
    "accumulate_along_rays_": lambda d: _accumulate(d, in_place=True),
    **{
        f"{name} {layout}": partial(_scan, getattr(nerfacc, name), layout)
        for layout in ("packed_info", "indices")
        for name in ("inclusive_sum", "exclusive_sum", "inclusive_prod", "exclusive_prod")
    },
    "pack_info": lambda d: (nerfacc.pack_info, {"ray_indices": _packed(d)["ray_indices"], "n_rays": RAYS}),
    "importance_sampling": lambda d: _importance(d, packed=False, several=False),
    "importance_sampling several": lambda d: _importance(d, packed=False, several=True),
    "importance_sampling packed": lambda d: _importance(d, packed=True, several=False),
    "importance_sampling packed several": lambda d: _importance(d, packed=True, several=True),
    "searchsorted": lambda d: _searchsorted(d, packed=False),
    "searchsorted packed": lambda d: _searchsorted(d, packed=True),
    "distortion": _distortion,
    "ray_aabb_intersect": _intersect,
    "traverse_grids": _traverse,
    "opencv_lens_undistortion": lambda d: _undistort(opencv_lens_undistortion, d, 8),
    "opencv_lens_undistortion_fisheye": lambda d: _undistort(opencv_lens_undistortion_fisheye, d, 4),
}
