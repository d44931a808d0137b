"""Estimators, and the losses that they learn from."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.nerfacc.cases.case import Case, part, row
from tests.nerfacc.cases.places import proper_cdf
from tests.nerfacc.occ_grids import BOX, SHAPE, cells_of, random_rays
from tests.nerfacc.scene import random_grid
from tests.ops.harness import rand


def occ_grid(package: Any, device: str, *, levels: int = 2) -> Any:
    return part(package, "OccGridEstimator")(BOX, resolution=list(SHAPE), levels=levels).to(device)


def by_cell(grid: Any) -> Callable[[Tensor], Tensor]:
    """The same for all points of a cell, so that draws do not matter; to be asked for one level after the other."""
    levels = itertools.cycle(range(2))

    def values(points: Tensor) -> Tensor:
        level = next(levels)
        return (cells_of(grid, points, level).float() * 12.9898).sin().abs()[:, None] * 0.02

    return values


def updated(package: Any, device: str) -> list[Tensor]:
    grid = occ_grid(package, device)
    states = []
    for step in (0, 1, 16):
        grid.update_every_n_steps(step, by_cell(grid))
        state = grid.state_dict()
        assert list(state) == ["resolution", "aabbs", "occs", "binaries"]
        states += [value.clone() for value in state.values()]
    return states


def marked(package: Any, device: str) -> list[Tensor]:
    grid = occ_grid(package, device)
    pose = torch.eye(4)
    pose[:3, :3] = torch.linalg.qr(rand(3, 3, seed=18)).Q
    pose[:3, 3] = torch.tensor([0.3, -0.2, 0.7])
    camera = torch.tensor([[[40.0, 1.0, 30.0], [0.0, 50.0, 20.0], [0.0, 0.0, 1.0]]])
    grid.mark_invisible_cells(camera.to(device), pose[None].to(device), 60, 40, 0.2)
    grid._update(0, by_cell(grid))
    assert 10 < (grid.occs < 0).sum() < len(grid.occs) - 10
    return [grid.occs, grid.binaries]


def sampled(package: Any, device: str) -> list[Tensor]:
    """Lengths of 300 rays' samples: all, and those that can be seen."""
    grid = occ_grid(package, device)
    grid.binaries.copy_(random_grid(2, *SHAPE))
    origins, directions = random_rays(device, 300)
    lengths = []
    for options in ({}, {"sigma_fn": lambda t, *_: 5 + t.sin()}, {"alpha_fn": lambda t, *_: 0.05 + 0.02 * t.sin()}):
        ray_indices, t_starts, t_ends = grid.sampling(origins, directions, render_step_size=0.01, **options)
        lengths.append(torch.zeros(300, device=device).index_add_(0, ray_indices, t_ends - t_starts))
    return lengths


def mean_apart(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Its lattice is summed up in float32: samples may change sides at some of the planes that a ray crosses."""
    for a, b in zip(actual, expected, strict=True):
        assert b.mean() > 0.05
        assert (a - b).abs().mean() < 0.01


def proposals(package: Any, device: str) -> list[Tensor]:
    """Edges of samples, the loss, and its gradient in the proposals' densities."""
    estimator = part(package, "PropNetEstimator")().to(device)
    scale = torch.tensor(1.0, device=device, requires_grad=True)

    def densities(t_starts: Tensor, t_ends: Tensor) -> Tensor:
        return scale * (0.5 + 0.2 * ((t_starts + t_ends) / 2).sin())

    found = []
    for kind in ("uniform", "lindisp"):
        # With these numbers no edge of one lies within 0.003 of another's: rounding moves none past it.
        t_starts, t_ends = estimator.sampling([densities] * 2, [31, 17], 7, 20, 1.0, 3.0, kind, requires_grad=True)
        lengths = t_ends - t_starts
        depths = (
            8 * lengths * torch.exp(-((t_starts - 2) ** 2))
        )  # narrower than what the networks say: a loss to learn from
        loss = estimator.compute_loss(torch.exp(-(depths.cumsum(-1) - depths)), 3.0)
        found += [t_starts, t_ends, loss, *torch.autograd.grad(loss, scale)]
    return found


def proposal_losses() -> list[Case]:
    edges, cdfs = proper_cdf(50, 31)
    key_edges, key_cdfs = proper_cdf(50, 21)
    key_cdfs = key_cdfs * 0.4

    def pdf_loss(package: Any, device: str) -> list[Tensor]:
        query, key = (part(package, "RayIntervals")(vals=v.to(device)) for v in (edges, key_edges))
        inputs = [v.to(device).requires_grad_() for v in (cdfs, key_cdfs)]
        loss = part(package, "estimators.prop_net._pdf_loss")(query, inputs[0], key, inputs[1])
        assert (loss > 0).float().mean() > 0.1
        return [loss, *torch.autograd.grad(loss, inputs, rand(50, 30, seed=19).to(device))]

    outer = {"t": edges, "w": cdfs.diff(dim=-1), "t_env": key_edges, "w_env": key_cdfs.diff(dim=-1)}

    def wanted(package: Any, device: str) -> list[Tensor]:
        wants = part(package, "estimators.prop_net.get_proposal_requires_grad_fn")(4.0, 100)
        return [torch.tensor([wants(step) for step in range(300)])]

    distances = [
        row(
            "estimators.prop_net._transform_stot",
            {"transform_type": kind, "s_vals": edges, "t_min": 0.5, "t_max": 6.0},
            on_cpu=True,
            form=kind,
        )
        for kind in ("uniform", "lindisp")
    ]
    return [
        Case("estimators.prop_net._pdf_loss", pdf_loss, False),
        row("estimators.prop_net._lossfun_outer", outer, "w", "w_env", on_cpu=True, rtol=1e-4, atol=1e-5),
        Case("estimators.prop_net.get_proposal_requires_grad_fn", wanted, True),
        *distances,
    ]


def estimators() -> list[Case]:
    return [
        Case("estimators.occ_grid.OccGridEstimator", updated, True, "updates", rtol=0.0, atol=0.0),
        Case("estimators.occ_grid.OccGridEstimator", marked, True, "cells no camera sees", rtol=0.0, atol=0.0),
        Case("estimators.occ_grid.OccGridEstimator", sampled, False, "sampling", close=mean_apart),
        # CDFs to some 64 roundings, the inverse of a density of weight of at least 0.3 exp(-1.4), two rounds of it.
        Case("estimators.prop_net.PropNetEstimator", proposals, False, rtol=1e-3, atol=1e-3),
    ]
