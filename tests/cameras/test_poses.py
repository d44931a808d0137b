from __future__ import annotations

import math

import pytest
import torch

from lightning_nerf.cameras.poses import look_at, spiral_poses, turntable_poses
from tests.ops.harness import rand


def test_poses_are_rotations_that_look_at_the_target() -> None:
    target = (0.3, -0.2, 0.1)
    c2w = look_at(rand(50, 3, seed=0, low=-2, high=2), target)
    rotation, position = c2w[:, :, :3], c2w[:, :, 3]
    torch.testing.assert_close(rotation.transpose(1, 2) @ rotation, torch.eye(3).expand(50, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(50), atol=1e-6, rtol=0)
    forward = torch.nn.functional.normalize(torch.tensor(target) - position, dim=-1)
    torch.testing.assert_close(-rotation[:, :, 2], forward, atol=1e-6, rtol=0)
    assert bool((rotation[:, 2, 1] > 0).all())  # the picture's up is the world's
    torch.testing.assert_close(rotation[:, 2, 0], torch.zeros(50), atol=1e-6, rtol=0)  # its right is level


def test_a_turntable_goes_once_around() -> None:
    c2w = turntable_poses(8, radius=4.0, elevation=30.0)
    assert c2w.shape == (8, 3, 4)
    assert c2w.dtype == torch.float32
    position = c2w[:, :, 3]
    torch.testing.assert_close(position.norm(dim=-1), torch.full((8,), 4.0))
    torch.testing.assert_close(position[:, 2], torch.full((8,), 2.0))
    torch.testing.assert_close(position.mean(0)[:2], torch.zeros(2), atol=1e-6, rtol=0)
    steps = (position - position.roll(1, 0)).norm(dim=-1)
    torch.testing.assert_close(steps, steps[:1].expand(8))
    moved = turntable_poses(8, 4.0, 30.0, target=(1.0, 2.0, 3.0))
    torch.testing.assert_close(moved[:, :, 3] - position, torch.tensor([1.0, 2.0, 3.0]).expand(8, 3))
    torch.testing.assert_close(moved[:, :, :3], c2w[:, :, :3], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("n", "radius", "elevation"), [(0, 4.0, 30.0), (8, 0.0, 30.0), (8, 4.0, 90.0)])
def test_bad_turntables_are_refused(n: int, radius: float, elevation: float) -> None:
    with pytest.raises(ValueError, match=r"expected n >= 1, radius > 0 and -90 < elevation < 90"):
        turntable_poses(n, radius, elevation)


def test_spiral_keeps_its_elevations_and_spreads() -> None:
    position = spiral_poses(50, 4.0, (-10.0, 70.0))[:, :, 3]
    elevation = torch.asin(position[:, 2] / 4.0) * (180 / math.pi)
    assert -10 <= float(elevation.min()) < -8
    assert 65 < float(elevation.max()) <= 70
    nearest = torch.cdist(position, position).fill_diagonal_(9).amin(1)
    assert float(nearest.min()) > 0.6  # 50 equal caps of that zone are 1.6 wide
    assert float(torch.cdist(position, spiral_poses(10, 4.0, (-10.0, 70.0), 2 / 3)[:, :, 3]).min()) > 0.05
