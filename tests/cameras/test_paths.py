from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_nerf.cameras import Cameras, image_rays
from lightning_nerf.cameras.paths import box_distances, orbit, resized, spiral
from lightning_nerf.cameras.poses import helix_poses, look_at, turntable_poses
from tests.data.numbered import MIXED, numbered_scene
from tests.scenes import tiny_scene

UNIT_BOX = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])


def elevations(cameras: Cameras, center: torch.Tensor) -> torch.Tensor:
    offset = cameras.c2w[:, :, 3] - center
    return torch.rad2deg(torch.asin(offset[:, 2] / offset.norm(dim=-1)))


def tiny_orbit(cache: Path, n: int = 2) -> Cameras:
    data = tiny_scene(cache)
    return orbit(data.scene("train").cameras, data.scene_box.aabb, n)


def test_an_orbit_closes(scene_cache: Path) -> None:
    data = tiny_scene(scene_cache)
    train, center = data.scene("train").cameras, data.scene_box.aabb.mean(0)
    cameras = orbit(train, data.scene_box.aabb, 12, elevation=25.0)
    position = cameras.c2w[:, :, 3]
    radius = (train.c2w[:, :, 3] - center).norm(dim=-1).mean()
    torch.testing.assert_close((position - center).norm(dim=-1), radius.expand(12))
    torch.testing.assert_close(elevations(cameras, center), torch.full((12,), 25.0), atol=1e-3, rtol=0)
    steps = (position - position.roll(1, 0)).norm(dim=-1)  # the one from the last to the first among them
    torch.testing.assert_close(steps, steps[:1].expand(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(steps[0], 2 * radius * math.cos(math.radians(25)) * math.sin(math.pi / 12))
    assert cameras.n_views == 12
    assert cameras.size.tolist() == [[24, 24]] * 12
    torch.testing.assert_close(cameras.intrinsics, train.intrinsics[:1].expand(12, 4))
    assert cameras.bounds is not None
    assert cameras.bounds.tolist() == [[2.0, 6.0]] * 12
    assert cameras.times is None


def test_paths_take_size_lens_and_bounds_of_the_first_camera_and_the_times_of_all() -> None:
    train = numbered_scene(MIXED).cameras
    train = train._replace(bounds=torch.tensor([[0.5, 7.0], [1.0, 2.0], [0.0, 9.0]]), times=torch.tensor([0.5, 0.25, 2.0]))
    for path in (orbit(train, UNIT_BOX, 4), spiral(train, UNIT_BOX, 4)):
        assert path.size.tolist() == [[5, 4]] * 4
        assert torch.equal(path.intrinsics, train.intrinsics[:1].expand(4, 4))
        assert path.bounds is not None
        assert path.bounds.tolist() == [[0.5, 7.0]] * 4
        assert path.times is not None
        torch.testing.assert_close(path.times, torch.linspace(0.25, 2.0, 4))


def test_paths_need_a_training_camera() -> None:
    none = numbered_scene().cameras.chosen(slice(0, 0))
    for path in (orbit, spiral):
        with pytest.raises(ValueError, match=r"train: expected training cameras .* got none"):
            path(none, UNIT_BOX, 4)


def test_a_spiral_rises_through_the_training_cameras_elevations(scene_cache: Path) -> None:
    data = tiny_scene(scene_cache)
    train, center = data.scene("train").cameras, data.scene_box.aabb.mean(0)
    found = elevations(spiral(train, data.scene_box.aabb, 40), center)
    trained = elevations(train, center)
    assert bool((found[1:] > found[:-1]).all())
    torch.testing.assert_close(found[[0, -1]], torch.stack([trained.min(), trained.max()]), atol=1e-3, rtol=0)


def test_a_helix_turns_as_often_as_asked() -> None:
    position = helix_poses(101, 4.0, (-10.0, 70.0), turns=2.0)[:, :, 3]
    azimuth = torch.atan2(position[:, 1], position[:, 0])
    turned = (azimuth[1:] - azimuth[:-1]).remainder(2 * math.pi)
    torch.testing.assert_close(turned, torch.full((100,), 2 * math.pi * 2 / 100), atol=1e-4, rtol=0)
    torch.testing.assert_close(position.norm(dim=-1), torch.full((101,), 4.0))
    assert helix_poses(1, 4.0, (10.0, 30.0)).shape == (1, 3, 4)


@pytest.mark.parametrize(("n", "radius", "ends"), [(0, 4.0, (0.0, 1.0)), (8, 0.0, (0.0, 1.0)), (8, 4.0, (0.0, 90.0))])
def test_bad_helices_are_refused(n: int, radius: float, ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"expected n >= 1, radius > 0 and -90 < elevations < 90"):
        helix_poses(n, radius, ends)


def test_other_sizes_keep_the_rays_of_the_corners(scene_cache: Path) -> None:
    cameras = tiny_orbit(scene_cache)
    large = resized(cameras, 72, 72)
    # The middle one of nine pixels that replace one has its center.
    few, many = (image_rays(c, 1).directions for c in (cameras, large))
    torch.testing.assert_close(many.view(72, 72, 3)[1::3, 1::3], few.view(24, 24, 3), atol=1e-6, rtol=0)
    assert large.size.tolist() == [[72, 72]] * 2


def test_cameras_of_any_sizes_get_one_size_and_keep_their_vertical_fields_of_view() -> None:
    cameras = numbered_scene(MIXED).cameras
    large = resized(cameras, 30, 12)
    assert large.size.tolist() == [[30, 12]] * 3
    height = cameras.size[:, 1].float()
    (_, old_fy, old_cx, old_cy), (fx, fy, cx, cy) = cameras.intrinsics.unbind(-1), large.intrinsics.unbind(-1)
    torch.testing.assert_close(cy / fy, old_cy / old_fy)  # the slopes of the upper and the lower edge
    torch.testing.assert_close((12 - cy) / fy, (height - old_cy) / old_fy)
    torch.testing.assert_close(fx / fy, cameras.intrinsics[:, 0] / old_fy)
    torch.testing.assert_close((cx - 15) / 12, (old_cx - cameras.size[:, 0] / 2) / height)


def test_parts_of_a_view_are_its_rays(scene_cache: Path) -> None:
    cameras = tiny_orbit(scene_cache)
    whole = image_rays(cameras, 1)
    parts = [image_rays(cameras, 1, start, min(start + 100, 576)) for start in range(0, 576, 100)]
    for name, value in whole._asdict().items():
        if value is not None:
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), value)
    with pytest.raises(ValueError, match="start, stop: expected 0 <= start <= stop <= 576"):
        image_rays(cameras, 1, 500, 600)


def test_distances_to_a_box() -> None:
    eyes = torch.tensor([[4.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    free = Cameras.of_one_size(look_at(eyes), torch.ones(4), 4, 4)
    cameras = free.bounded(0.1, 100.0)
    assert box_distances(cameras.chosen([0]), UNIT_BOX) == pytest.approx((3.0, math.sqrt(27)))
    assert box_distances(cameras, UNIT_BOX) == pytest.approx((0.1, math.sqrt(27)))  # from within: the near plane
    assert box_distances(free.bounded(0.1, 4.0), UNIT_BOX) == pytest.approx((0.1, 4.0))
    assert box_distances(free, UNIT_BOX) == pytest.approx((0.0, math.sqrt(27)))


def pixels(cameras: Cameras, points: torch.Tensor) -> torch.Tensor:
    """Where points [N, 3] are in each picture, [V, N, 2]; all are in front of the camera."""
    c2w, (fx, fy, cx, cy) = cameras.c2w, cameras.intrinsics[0].tolist()
    local = torch.einsum("vij,vni->vnj", c2w[:, :, :3], points[None] - c2w[:, None, :, 3])
    assert bool((local[..., 2] < 0).all())
    return torch.stack([cx - fx * local[..., 0] / local[..., 2], cy + fy * local[..., 1] / local[..., 2]], -1)


@pytest.mark.parametrize("path", [orbit, spiral])
@pytest.mark.parametrize("side", [0.1, 1.0, 3.0, 40.0])
@pytest.mark.parametrize("lens", [(30.0, 30.0, 16.0, 12.0), (60.0, 30.0, 10.0, 4.0)])
def test_a_framed_box_stays_in_all_pictures(path: Any, side: float, lens: tuple[float, ...]) -> None:
    center = torch.tensor([1.0, -2.0, 3.0])
    poses = turntable_poses(5, 4.0, 40.0, target=center.tolist())
    train = Cameras.of_one_size(poses, torch.tensor(lens), 32, 24, near=2.0, far=6.0)
    aabb = center + side * torch.tensor([[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]])
    found = path(train, aabb, 20, framed=aabb)
    radius = (found.c2w[:, :, 3] - center).norm(dim=-1)
    assert found.bounds is not None
    torch.testing.assert_close(radius, radius[:1].expand(20))
    if side == 0.1:  # it fits already
        torch.testing.assert_close(found.c2w, path(train, aabb, 20).c2w)
        assert found.bounds.tolist() == [[2.0, 6.0]] * 20
        return
    at = pixels(found, torch.cartesian_prod(*aabb.unbind(1)))
    size = torch.tensor([32.0, 24.0])
    assert bool((at > -1e-3).all())
    assert bool((at < size + 1e-3).all())
    slack = torch.minimum(at, size - at).min()
    if float(radius[0]) > 4.001:  # no farther than needed
        assert float(slack) < 1e-2
        torch.testing.assert_close(found.bounds[:, 1], radius + 2.0)
    assert side < 3 or float(radius[0]) > 4.001
