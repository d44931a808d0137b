"""A scene made of formulas."""

from __future__ import annotations

import math

import torch

from lightning_nerf import Cameras, Images, Scene, SceneBox, Source
from lightning_nerf.cameras import image_rays
from lightning_nerf.cameras.poses import spiral_poses

RADIUS = 0.35
CENTERS = torch.tensor([[-0.45, 0.0, 0.0], [0.45, 0.0, 0.0]])
COLORS = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.3, 0.9]])
SIZES = ((1.0, 1.0), (1.25, 0.75), (0.75, 1.125))  # width and height of every third picture, of the resolution


class TwoBalls(Source):
    """A red ball and a blue one, matt and lit from above, on transparent ground; ``resolution`` pixels a side.

    ``mixed``: pictures of three sizes, each with a focal length and a principal point of its own. ``moving``: the balls
    turn around each other in the course of times 0 to 1. ``far_ball``: a green ball far outside of the box.
    """

    def __init__(
        self,
        resolution: int = 32,
        n_train: int = 20,
        n_test: int = 4,
        mixed: bool = False,
        moving: bool = False,
        far_ball: bool = False,
    ) -> None:
        self.resolution, self.mixed, self.moving, self.far_ball = resolution, mixed, moving, far_ball
        self.counts = {"train": n_train, "val": 2, "test": n_test}

    def read(self, split: str) -> Scene:
        n, side = self.counts[split], self.resolution
        turn = {"train": 0.0, "val": 0.3, "test": 0.6}[split]
        sizes = [SIZES[i % 3] if self.mixed else SIZES[0] for i in range(n)]
        size = torch.tensor([[round(side * w), round(side * h)] for w, h in sizes])
        shift = torch.tensor([[0.5 * i % 2.0, 0.25 * i % 1.0] for i in range(n)]) if self.mixed else torch.zeros(n, 2)
        focal = torch.tensor([[(1.4 + 0.1 * (i % 3) * self.mixed) * side] * 2 for i in range(n)])
        cameras = Cameras(
            spiral_poses(n, 3.0, (0.0, 60.0), turn),
            torch.cat([focal, size / 2 + shift], 1),
            size,
            bounds=torch.tensor([1.0, 30.0 if self.far_ball else 6.0]).expand(n, 2).contiguous(),
            times=torch.linspace(0, 1, n) if self.moving else None,
        )
        pictures = [self.picture(cameras, i) for i in range(n)]
        box = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
        return Scene(cameras, Images.from_pictures(pictures), [f"{split}_{i}" for i in range(n)], box)

    def picture(self, cameras: Cameras, index: int) -> torch.Tensor:
        """RGBA [H, W, 4] uint8: |o + t d - c| = r, solved for the nearer t of the nearest ball."""
        rays = image_rays(cameras, index)
        rgba = torch.zeros(len(rays.origins), 4)
        nearest = torch.full((len(rays.origins),), torch.inf)
        for center, color, radius in self.balls(0.0 if cameras.times is None else float(cameras.times[index])):
            to_ray = rays.origins - center
            along = (to_ray * rays.directions).sum(-1)
            root = along**2 - to_ray.square().sum(-1) + radius**2
            t = -along - root.clamp(min=0).sqrt()
            seen = (root > 0) & (t < nearest) & (t > 0)
            up = ((to_ray + t[:, None] * rays.directions)[:, 2:] / radius).clamp(-1, 1)
            rgba[seen] = torch.cat([color * (0.75 + 0.25 * up), torch.ones_like(up)], 1)[seen]
            nearest = torch.where(seen, t, nearest)
        return (255 * rgba).round().to(torch.uint8).view(*cameras.shape(index), 4)

    def balls(self, time: float) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        """Center, color and radius of each ball at a time."""
        angle = 0.5 * math.pi * time
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
        balls = [(turn @ center, color, RADIUS) for center, color in zip(CENTERS, COLORS, strict=True)]
        if self.far_ball:
            balls.append((torch.tensor([0.0, 0.0, -3.2]), torch.tensor([0.2, 0.8, 0.2]), 1.6))
        return balls
