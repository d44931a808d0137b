"""Draws ``docs/step-graphs.png``: what a training step does under ``strategy="nerf_cuda_graph"``.

pip install matplotlib && python docs/plots/step_graphs.py
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

HERE = Path(__file__).parent
INK, MUTED, LINE = "#1f2328", "#6e7781", "#9aa4ae"
HOST, DEVICE, OPEN = "#e8f0fa", "#fde9dd", "#ffffff"
BLUE, RUST = "#2563a8", "#c2410c"
MONO = "DejaVu Sans Mono"


def draw_box(
    axes: Axes, x: float, y: float, width: float, height: float, fill: str, edge: str, dashed: bool = False
) -> None:
    """A box with round corners, by its lower left corner."""
    style = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12",
        facecolor=fill, edgecolor=edge, linewidth=1.5, linestyle="--" if dashed else "-",
    )  # fmt: skip
    axes.add_patch(style)


def draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = LINE) -> None:
    """An arrow from start to end."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.6, "mutation_scale": 14})


def draw_host(axes: Axes) -> None:
    """The upper lane: what Lightning calls."""
    calls = [
        (1.35, 2.05, "training_step"),
        (3.65, 4.8, "backward, hooks"),
        (8.7, 2.45, "optimizer_step"),
        (11.6, 2.3, "schedule, logs"),
    ]
    for x, width, name in calls:
        draw_box(axes, x, 4.55, width, 0.7, HOST, BLUE)
        axes.text(x + width / 2, 4.9, name, ha="center", va="center", fontsize=12, family=MONO, color=INK)
    for (x, width, _), (following, _, _) in pairwise(calls):
        draw_arrow(axes, (x + width, 4.9), (following, 4.9), BLUE)


def draw_list(axes: Axes, x: float, y: float, lines: list[str], size: float = 11.5) -> None:
    """Lines of text below each other."""
    for row, line in enumerate(lines):
        axes.text(x, y - 0.41 * row, line, fontsize=size, color=INK, va="center")


def draw_device(axes: Axes) -> None:
    """The lower lane: the two graphs, and what lies between and after them."""
    parts = [
        (1.35, 3.0, "Graph 1: a batch", ["draw rays", "march, prune samples", "field", "render, loss", "backward pass",
                                         "step counter + 1"], DEVICE, RUST, False),
        (4.8, 3.45, "Between: ordinary code", ["hooks read, edit gradients", "several GPUs: their mean",
                                               "accumulation: graph 1 again", "your own clipping"], OPEN, LINE, True),
        (8.7, 2.45, "Graph 2: update", ["clip gradients", "optimizer step", "average of weights", "fp16 copies"],
         DEVICE, RUST, False),
        (11.6, 2.3, "Every few steps", ["grid update: one", "   graph of its own", "logs: copied, read",
                                        "   1 or 2 steps later"], OPEN, LINE, True),
    ]  # fmt: skip
    for x, width, title, lines, fill, edge, dashed in parts:
        draw_box(axes, x, 0.35, width, 3.2, fill, edge, dashed)
        axes.text(x + 0.18, 3.22, title, fontsize=12.5, weight="bold", va="center", color=edge if not dashed else MUTED)
        draw_list(axes, x + 0.18, 2.72, lines)
    draw_arrow(axes, (4.35, 1.95), (4.8, 1.95))
    draw_arrow(axes, (8.25, 1.95), (8.7, 1.95))
    draw_arrow(axes, (11.15, 1.95), (11.6, 1.95))
    for x in (2.35, 9.9):
        draw_arrow(axes, (x, 4.55), (x, 3.55), RUST)
        axes.text(x + 0.14, 4.06, "replay: one launch", fontsize=11.5, color=RUST, va="center")


def main() -> None:
    """Write the picture."""
    plt.rcParams.update({"font.family": "DejaVu Sans"})
    figure, axes = plt.subplots(figsize=(11.6, 4.7))
    axes.set_xlim(0, 14)
    axes.set_ylim(0.1, 5.55)
    axes.axis("off")
    draw_host(axes)
    draw_device(axes)
    axes.text(0.05, 4.9, "host", fontsize=13, weight="bold", color=BLUE, va="center")
    axes.text(0.05, 1.95, "device", fontsize=13, weight="bold", color=RUST, va="center")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.01)
    figure.savefig(HERE.parent / "step-graphs.png", dpi=140, facecolor="white")


if __name__ == "__main__":
    main()
