"""A scene made of formulas."""

from __future__ import annotations

import torch

from lightning_nerf import NeRFDataModule, Views
from lightning_nerf.data.cameras import spiral_poses
from lightning_nerf.data.views import image_rays

RADIUS = 0.35
CENTRES = torch.tensor([[-0.45, 0.0, 0.0], [0.45, 0.0, 0.0]])
COLOURS = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.3, 0.9]])


class TwoBalls(NeRFDataModule):
    """A red ball and a blue one, matt and lit from above, on transparent ground; ``resolution`` pixels a side."""

    def __init__(self, resolution: int = 32, n_train: int = 20, n_test: int = 4, background: str = "white") -> None:
        super().__init__(((-1, -1, -1), (1, 1, 1)), near=1.0, far=6.0, background=background)
        self.resolution = resolution
        self.counts = {"train": n_train, "val": 2, "test": n_test}

    def load(self, split: str) -> tuple[Views, list[str]]:
        n, side = self.counts[split], self.resolution
        turn = {"train": 0.0, "val": 0.3, "test": 0.6}[split]
        c2w = spiral_poses(n, 3.0, (0.0, 60.0), turn)
        intrinsics = torch.tensor([1.4 * side, 1.4 * side, side / 2, side / 2]).expand(n, 4).contiguous()
        views = Views(torch.zeros(n, side, side, 4, dtype=torch.uint8), c2w, intrinsics)
        for i in range(n):
            views.images[i] = self.picture(views, i).view(side, side, 4)
        return views, [f"{split}_{i}" for i in range(n)]

    def picture(self, views: Views, index: int) -> torch.Tensor:
        """RGBA [H * W, 4] uint8: |o + t d - c| = r, solved for the nearer t of the nearer ball."""
        rays = image_rays(views, index, self.near, self.far)
        rgba = torch.zeros(len(rays.origins), 4)
        nearest = torch.full((len(rays.origins),), torch.inf)
        for centre, colour in zip(CENTRES, COLOURS, strict=True):
            to_ray = rays.origins - centre
            along = (to_ray * rays.directions).sum(-1)
            root = along**2 - to_ray.square().sum(-1) + RADIUS**2
            t = -along - root.clamp(min=0).sqrt()
            seen = (root > 0) & (t < nearest)
            up = ((to_ray + t[:, None] * rays.directions)[:, 2:] / RADIUS).clamp(-1, 1)
            rgba[seen] = torch.cat([colour * (0.75 + 0.25 * up), torch.ones_like(up)], 1)[seen]
            nearest = torch.where(seen, t, nearest)
        return (255 * rgba).round().to(torch.uint8)
