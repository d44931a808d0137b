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
