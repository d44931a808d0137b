from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.cameras.poses import turntable_poses
from lightning_nerf.data.captured_box import CaptureFit, cameras_to_scene_units, cameras_to_world, fit_capture
from tests.data.captures import CENTER, world_poses


def fit(poses: Tensor, points: Tensor | None = None, has_up: bool = False) -> CaptureFit:
    n = len(poses)
    intrinsics = torch.tensor([[100.0, 100.0, 50.0, 50.0]]).expand(n, 4)
    return fit_capture(poses, intrinsics, torch.full((n, 2), 100), points, has_up)


def up(found: CaptureFit) -> list[float]:
    return (found.to_world[:3, 2] / found.scale).tolist()


def facing_back(n: int = 5) -> Tensor:
    """Cameras in a row that all look along -z."""
    poses = torch.eye(4)[None, :3].repeat(n, 1, 1)
    poses[:, 0, 3] = torch.arange(n) - (n - 1) / 2
    return poses


def test_cameras_around_an_object_lie_within_one_of_it_with_z_up() -> None:
    found = fit(world_poses(60))
    torch.testing.assert_close(found.to_world[:3, 3].float(), torch.tensor(CENTER), rtol=0, atol=1e-3)
    assert found.scale == pytest.approx(4.0, abs=1e-3)
    assert up(found) == pytest.approx([0, 1, 0], abs=1e-3)  # the files' up is y
    rotation = found.to_world[:3, :3] / found.scale
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.linalg.det(rotation) > 0
    cameras = Cameras.of_one_size(world_poses(60), torch.ones(4), 2, 2)
    positions = cameras_to_scene_units(cameras, found.to_world).c2w[:, :, 3]
    torch.testing.assert_close(positions.norm(dim=-1), torch.ones(60), rtol=0, atol=1e-3)


@pytest.mark.parametrize("upside_down", [False, True])
def test_the_transform_is_undone_exactly(upside_down: bool) -> None:
    poses = world_poses(7)
    if upside_down:
        poses = torch.diag(torch.tensor([1.0, -1.0, -1.0])) @ turntable_poses(7, 3.0)  # up is -z
    found = fit(poses)
    if upside_down:
        assert float(found.to_world[2, 2]) / found.scale == pytest.approx(-1)
    cameras = Cameras.of_one_size(poses, torch.ones(4), 2, 2, near=1.0, far=6.0)
    there = cameras_to_scene_units(cameras, found.to_world)
    assert there.bounds is not None
    torch.testing.assert_close(there.bounds[0] * found.scale, torch.tensor([1.0, 6.0]))
    back = cameras_to_world(there, found.to_world)
    torch.testing.assert_close(back.c2w, cameras.c2w, rtol=0, atol=1e-5)
    torch.testing.assert_close(back.bounds, cameras.bounds)


def test_level_cameras_that_look_down_from_one_side_do_not_tilt_the_scene() -> None:
    poses = turntable_poses(9, 4.0)[:4]  # of a third of a turn: their mean up leans by 24 degrees
    assert up(fit(poses)) == pytest.approx([0, 0, 1], abs=1e-6)
    on_their_side = torch.cat([-poses[:, :, 1:2], poses[:, :, :1], poses[:, :, 2:]], -1)
    assert up(fit(on_their_side)) == pytest.approx(torch.nn.functional.normalize(poses[:, :, 0].mean(0), dim=0).tolist())


@pytest.mark.parametrize(("degrees", "is_kept"), [(10, True), (20, False), (90, False)])
def test_an_up_that_the_files_mean_is_kept_where_the_cameras_nearly_agree(degrees: int, is_kept: bool) -> None:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    poses = torch.tensor([[1.0, 0, 0], [0, c, -s], [0, s, c]]) @ turntable_poses(9, 4.0)
    assert up(fit(poses)) == pytest.approx([0, -s, c], abs=1e-6)
    assert up(fit(poses, has_up=True)) == pytest.approx([0, 0, 1] if is_kept else [0, -s, c], abs=1e-6)


def test_points_say_how_far_cameras_look_that_look_the_same_way() -> None:
    points = torch.tensor([[0.0, 0.0, -z] for z in (8.0, 10.0, 900.0)])
    found = fit(facing_back(), points)
    assert found.to_world[:3, 3].tolist() == [0.0, 0.0, -10.0]
    assert "the cameras look the same way" in found.why
    guessed = fit(facing_back())
    assert guessed.to_world[:3, 3].tolist() == [0.0, 0.0, -10.0]  # 5 times their spread of 2
    assert "guess" in guessed.why


def test_cameras_that_look_outwards_are_in_the_middle() -> None:
    poses = turntable_poses(12, 1.0, elevation=0.0)
    poses[:, :, 0] *= -1
    poses[:, :, 2] *= -1  # turned around
    points = 7 * torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    found = fit(poses, points)
    torch.testing.assert_close(found.to_world[:3, 3], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert found.scale == pytest.approx(7.0, rel=1e-3)
    assert fit(poses).scale == pytest.approx(5.0, rel=1e-3)


def test_one_camera_far_away_does_not_decide_the_unit() -> None:
    poses = turntable_poses(20, 2.0)
    far = turntable_poses(1, 500.0)
    assert fit(torch.cat([poses, far])).scale == pytest.approx(8.0, rel=1e-3)  # 4 times the median


def test_a_stray_does_not_decide_where_cameras_are_that_look_outwards() -> None:
    poses = turntable_poses(13, 1.0, elevation=0.0)
    poses[:, :, [0, 2]] *= -1
    poses[0, 0, 3] = 1e12
    found = fit(poses)
    assert float(found.to_world[:3, 3].norm()) < 1
    assert found.scale < 25


def test_the_message_says_origin_up_and_unit() -> None:
    message = fit(world_poses(60)).message()
    assert "origin is (3, -2, 5)" in message
    assert "unit 4 of theirs" in message
