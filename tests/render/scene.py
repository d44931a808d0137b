"""A ball whose pictures are known, as a checkpoint and a recipe."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from torch import Tensor

from lightning_nerf.cli import build
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.types import FieldOutput

RADIUS = 0.5
COLOR = (0.2, 0.4, 0.8)
FIRST, LAST = 2.0, 5.0  # times of the views of the moving ball


class Ball(RadianceField):
    """Opaque inside ``radius`` around the middle of the box; a buffer holds the radius, so that checkpoints matter."""

    radius: Tensor

    def __init__(self, extras: bool = True) -> None:
        super().__init__()
        self.register_buffer("radius", torch.tensor(0.0))
        self.extras = extras

    def density(self, positions: Tensor) -> Tensor:
        inside = (positions - self.aabb.mean(0)).norm(dim=-1) < self.radius
        return 1000.0 * inside

    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:
        rgb = positions.new_tensor(COLOR).expand(len(positions), 3)
        half = positions.new_full((len(positions), 1), 0.6)
        # `warm` is beyond [0, 1] on purpose, `code` cannot be shown.
        extras = {"normal": rgb.flip(-1), "heat": half, "warm": 4 * half, "code": half.expand(-1, 5)}
        return FieldOutput(self.density(positions), rgb, extras if self.extras else {})


class MovingBall(RadianceField):
    """Rises by one through the middle of the box from time 2 to 5, and turns from black to red: its red tells the time."""

    wants = ("times",)
    radius: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("radius", torch.tensor(0.0))

    def density(self, positions: Tensor, times: Tensor) -> Tensor:  # type: ignore[override]
        height = (times - FIRST) / (LAST - FIRST) - 0.5
        offset = positions - self.aabb.mean(0)
        offset = torch.stack([offset[:, 0], offset[:, 1], offset[:, 2] - height], 1)
        return 1000.0 * (offset.norm(dim=-1) < self.radius)

    def forward(self, positions: Tensor, directions: Tensor, times: Tensor) -> FieldOutput:  # type: ignore[override]
        red = ((times - FIRST) / (LAST - FIRST))[:, None]
        return FieldOutput(self.density(positions, times), torch.cat([red, 0 * red, 0 * red], 1))


def write_moving_recipe(folder: Path, cache: Path) -> Path:
    """A recipe of the moving ball, on views with times from 2 to 5."""
    content = yaml.safe_load(write_recipe(folder, cache).read_text())
    source = {"resolution": 24, "n_train": 6, "n_test": 3, "cache_dir": str(cache)}
    content["model"]["init_args"]["field"] = {"class_path": "tests.render.scene.MovingBall"}
    content["data"] = {
        "class_path": "lightning_nerf.data.NeRFDataModule",
        "init_args": {
            "source": {"class_path": "tests.scenes.TimedSource", "init_args": source},
            "aabb": [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]], "near": 2.0, "far": 6.0,
        },
    }  # fmt: skip
    path = folder / "moving.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def write_recipe(folder: Path, cache: Path) -> Path:
    """A recipe of the ball, seen by the cameras of the synthetic scene."""
    content = {
        "seed_everything": False,
        "trainer": {"accelerator": "cpu", "logger": False, "enable_checkpointing": False},
        "model": {
            "class_path": "lightning_nerf.modules.NeRFModule",
            "init_args": {
                "field": {"class_path": "tests.render.scene.Ball"},
                "estimator": {
                    "class_path": "lightning_nerf.estimators.OccupancyGrid",
                    "init_args": {"resolution": 8, "step_size": 0.01},
                },
                "eval_samples": 2**14,
            },
        },
        "data": {
            "class_path": "lightning_nerf.data.SyntheticScene",
            "init_args": {
                "resolution": 24, "n_train": 6, "n_test": 2, "cache_dir": str(cache),
                "aabb": [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]],
            },
        },
    }  # fmt: skip
    path = folder / "ball.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def write_checkpoint(path: Path, recipe: Path, **further: object) -> Path:
    cli = build(["-c", str(recipe)])
    cli.model.field.bind(cli.datamodule.scene_box)
    cli.model.estimator.bind(cli.datamodule.scene_box)
    cli.model.field.radius.fill_(RADIUS)
    torch.save({"state_dict": cli.model.state_dict(), **further}, path)
    return path
