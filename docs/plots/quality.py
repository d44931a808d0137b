"""Draws ``docs/quality.png``: PSNR over training seconds, from the numbers in ``quality.csv`` beside this file.

pip install matplotlib && python docs/plots/quality.py
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
OURS = "lightning-nerf"
INK, MUTED, GRID = "#1f2328", "#6e7781", "#e4e8ec"


class Curve(NamedTuple):
    """How a method is drawn."""

    color: str
    label_at: tuple[float, float]  # seconds, dB: where the label begins
    label: str


CURVES = {
    OURS: Curve("#c2410c", (0.47, 35.35), "lightning-nerf"),
    "instant-ngp v2": Curve("#2563a8", (2.25, 30.15), "instant-ngp v2"),
    "NerfAcc, occupancy grid": Curve("#3b7d4f", (98, 34.15), "NerfAcc,\noccupancy grid"),
    "ngp_pl": Curve("#7a5ba6", (21, 31.35), "ngp_pl"),
    "NerfAcc, proposal networks": Curve("#8a6d1d", (66, 30.45), "NerfAcc,\nproposal networks"),
}


def read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Seconds and dB of each method, in the order of the file."""
    curves: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["drawn"] == "yes":
                curves.setdefault(row["method"], []).append((float(row["seconds"]), float(row["psnr"])))
    return curves


def draw_axes(axes: Axes) -> None:
    """Scales, ticks and titles."""
    axes.set_xscale("log")
    axes.set_xlim(0.44, 290)
    axes.set_ylim(27, 37.2)
    seconds = [0.5, 1, 2, 5, 10, 20, 60, 157]
    axes.set_xticks(seconds, [f"{s:g} s" for s in seconds])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(28, 38, 2), [f"{db} dB" for db in range(28, 38, 2)])
    axes.grid(axis="y", color=GRID, linewidth=1)
    axes.tick_params(length=0, labelsize=11.5, labelcolor=MUTED, pad=6)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.spines["bottom"].set(visible=True, color="#c4cad0")
    axes.set_xlabel("training time, one H200 (log scale)", fontsize=11.5, color=MUTED, labelpad=8)


def draw_curves(axes: Axes, curves: dict[str, list[tuple[float, float]]]) -> None:
    """A line and a label for each method; ours is thicker."""
    for name, points in curves.items():
        curve, is_ours = CURVES[name], name == OURS
        seconds, psnr = zip(*points, strict=True)
        width, size = (3.4, 7.5) if is_ours else (1.8, 5)
        axes.plot(
            seconds, psnr, "o-", color=curve.color, linewidth=width, markersize=size, zorder=4 if is_ours else 3,
            markeredgecolor="white", markeredgewidth=1.1, solid_capstyle="round",
        )  # fmt: skip
        weight = "bold" if is_ours else "normal"
        axes.text(
            *curve.label_at, curve.label, color=curve.color, fontsize=15 if is_ours else 12, weight=weight,
            va="center", linespacing=1.15, zorder=5,
        )  # fmt: skip


def draw_marks(axes: Axes) -> None:
    """The scores of ours that the text names."""
    for seconds, psnr, text, offset in [
        (1, 33.01, "33.0 at 1 s", (11, -5)),
        (2, 35.11, "35.1 at 2 s", (11, -6)),
        (19.9, 36.64, "36.6 at 20 s", (11, -3)),
    ]:
        axes.annotate(text, (seconds, psnr), offset, textcoords="offset points", color=CURVES[OURS].color, fontsize=11.5)


def main() -> None:
    """Write the picture."""
    plt.rcParams.update({"font.family": "DejaVu Sans", "text.color": INK})
    figure, axes = plt.subplots(figsize=(9, 5.1))
    draw_axes(axes)
    draw_curves(axes, read_curves(HERE / "quality.csv"))
    draw_marks(axes)
    figure.suptitle("Lego, 800 x 800: PSNR over training time", x=0.02, ha="left", fontsize=15, weight="bold")
    figure.text(
        0.02, 0.895, "mean over 25 test views, trained on the 100 train views, white background", color=MUTED, size=11.5
    )
    figure.subplots_adjust(left=0.085, right=0.985, top=0.875, bottom=0.14)
    figure.savefig(HERE.parent / "quality.png", dpi=170, facecolor="white")


if __name__ == "__main__":
    main()
