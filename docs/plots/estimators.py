"""Draws ``docs/estimators.png``: where three estimators place samples on one ray of the synthetic scene.

Prints the table of ``docs/choosing-an-estimator.md``, too: samples over a whole view, and how far its colors are from
those of 4,096 samples per ray.

pip install matplotlib && python docs/plots/estimators.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from lightning_nerf import Estimator, Hierarchical, OccupancyGrid, PackedSamples, Rays, Uniform, as_query
from lightning_nerf.cameras import image_rays
from lightning_nerf.data.analytic import AnalyticScene
from lightning_nerf.data.sources import SyntheticSource
from lightning_nerf.data.sources.synthetic import BOX
from lightning_nerf.ops.composite import composite
from lightning_nerf.ops.sample_points import sample_points

HERE = Path(__file__).parent
INK, MUTED, FILL, BLUE, RUST = "#1f2328", "#6e7781", "#f0d4c3", "#2563a8", "#c2410c"
ORIGIN, TARGET = (3.816, 0.361, 1.143), (0.333, -0.213, -0.304)  # this ray meets a thin rod, then a solid
SHOWN = torch.linspace(2.9, 5.35, 1500)  # of t
SCENE = AnalyticScene()
PICTURE = 64  # pixels per side of the view


def solid_density(positions: Tensor, peak: float, blur: float) -> Tensor:
    """Of the scene's solids, with borders as soft as a field's."""
    distance = torch.from_numpy(SCENE.distance(positions.T.contiguous().numpy()))
    return peak * torch.sigmoid(-distance / blur)


def soft(positions: Tensor) -> Tensor:
    """For the figure: some light gets through the rod."""
    return solid_density(positions, 30, 0.01)


def hard(positions: Tensor) -> Tensor:
    """For the table: as dense as a trained field."""
    return solid_density(positions, 300, 0.002)


def trained_grid(density: Callable[[Tensor], Tensor], step_size: float) -> OccupancyGrid:
    """One that has seen the density often enough to know where space is empty."""
    grid = OccupancyGrid(resolution=64, step_size=step_size, threshold=0.05, warmup_steps=100).bind(BOX)
    for step in range(20):
        grid.update(density, step=step, key=torch.tensor([0, 0, step]))
    return grid


def middles(samples: PackedSamples) -> Tensor:
    """t of the samples' middles."""
    return (samples.t_starts + samples.t_ends) / 2


# -- the figure ------------------------------------------------------------------------------------------------------


def draw_density(axes: Axes, rays: Rays) -> None:
    """Density along the ray, and how much light gets so far."""
    values = soft(rays.origins + SHOWN[:, None] * rays.directions)
    light = torch.exp(-torch.cumsum(values, 0) * float(SHOWN[1] - SHOWN[0]))
    axes.fill_between(SHOWN, values / values.max(), color=FILL, linewidth=0)
    axes.plot(SHOWN, light, color=INK, linewidth=1.6)
    axes.text(3.0, 1.07, "light that gets so far", fontsize=11, va="bottom")
    axes.text(3.37, 0.72, "a thin rod", fontsize=11, color=RUST)
    axes.text(5.02, 0.72, "a solid", fontsize=11, color=RUST)
    axes.set_ylim(0, 1.3)


def draw_row(axes: Axes, name: str, rays: Rays, first: PackedSamples | None, last: PackedSamples, what: str) -> None:
    """The samples of one estimator, over the density; ``what`` names those of its first round or look."""
    inside = soft(rays.origins + SHOWN[:, None] * rays.directions) > 3
    axes.fill_between(SHOWN, 0, 1, where=inside.numpy(), color=FILL, linewidth=0)
    note = f"rendered: {len(last.t_starts)}"
    if first is not None:
        axes.vlines(middles(first), 0.56, 0.9, color=BLUE, linewidth=1.3)
        note = f"{what}: {len(first.t_starts)}\n{note}"
    axes.vlines(middles(last), 0.1, 0.9 if first is None else 0.44, color=RUST, linewidth=1.3)
    axes.set_ylim(0, 1)
    axes.text(-0.015, 0.68, name, transform=axes.transAxes, ha="right", va="center", fontsize=12.5, weight="bold")
    axes.text(-0.015, 0.28, note, transform=axes.transAxes, ha="right", va="center", fontsize=10.5, color=MUTED)


def draw() -> None:
    """Write the figure."""
    origin, query = torch.tensor([ORIGIN]), as_query(soft)
    direction = torch.nn.functional.normalize(torch.tensor([TARGET]) - origin)
    rays = Rays(origin, direction, torch.zeros(1), torch.full((1,), 9.0))
    grid, refined = trained_grid(soft, 0.02), Hierarchical(32, 32).bind(BOX).place(rays, query)
    figure, panels = plt.subplots(4, 1, figsize=(10, 4.9), sharex=True, height_ratios=[1.5, 1, 1, 1])
    draw_density(panels[0], rays)
    draw_row(panels[1], "Uniform(64)", rays, None, Uniform(64).bind(BOX).place(rays).samples, "")
    draw_row(panels[2], "Hierarchical(32, 32)", rays, refined.rounds[0].samples, refined.samples, "coarse round")
    draw_row(
        panels[3], "OccupancyGrid", rays, grid.place(rays).samples, grid.place(rays, query).samples, "in occupied cells"
    )
    for axes in panels:
        axes.set_xlim(float(SHOWN[0]), float(SHOWN[-1]))
        axes.set_yticks([])
        axes.tick_params(length=0, labelsize=11, labelcolor=MUTED)
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color("#c4cad0")
    panels[-1].set_xlabel("distance along the ray", fontsize=11, color=MUTED)
    figure.subplots_adjust(left=0.225, right=0.985, top=0.985, bottom=0.1, hspace=0.12)
    figure.savefig(HERE.parent / "estimators.png", dpi=150, facecolor="white")


# -- the table -------------------------------------------------------------------------------------------------------


def colors(rays: Rays, samples: PackedSamples) -> Tensor:
    """Of rays, [R, 3]: stripes on solids."""
    points = sample_points(rays, samples)[0]
    stripes = 0.5 + 0.5 * torch.sin(20 * points)
    return composite(hard(points), stripes, samples.t_starts, samples.t_ends, samples.offsets).channels


def tabulate() -> None:
    """Print samples per ray and errors over one view."""
    cameras = SyntheticSource(PICTURE, n_train=1, n_test=1, n_val=0).read("test").cameras
    rays = image_rays(cameras.bounded(0.0, 9.0), 0)
    exact = colors(rays, Uniform(4096).bind(BOX).place(rays).samples)
    compared: dict[str, Estimator] = {
        "Uniform(64)": Uniform(64).bind(BOX),
        "Uniform(192)": Uniform(192).bind(BOX),
        "Hierarchical(64, 128)": Hierarchical(64, 128).bind(BOX),
        "OccupancyGrid(64), steps of 0.02": trained_grid(hard, 0.02),
        "OccupancyGrid(64), steps of 0.01": trained_grid(hard, 0.01),
    }
    for name, estimator in compared.items():
        placed = estimator.place(rays, as_query(hard))
        first = placed.rounds[0].samples if placed.rounds else estimator.place(rays).samples
        error = (colors(rays, placed.samples) - exact).square().mean()
        counts = [len(samples.t_starts) / len(rays.origins) for samples in (first, placed.samples)]
        print(f"| {name} | {counts[0]:.1f} | {counts[1]:.1f} | {-10 * error.log10():.1f} dB |")


if __name__ == "__main__":
    plt.rcParams.update({"font.family": "DejaVu Sans", "text.color": INK})
    draw()
    tabulate()
