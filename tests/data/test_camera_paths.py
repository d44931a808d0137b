from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from lightning_nerf.data.camera_paths import blank, box_distances, cameras_on, orbit, resized, spiral
from lightning_nerf.data.cameras import helix_poses, look_at
from lightning_nerf.data.views import Views, image_rays
from tests.scenes import tiny_scene


def elevations(views: Views, centre: torch.Tensor) -> torch.Tensor:
    offset = views.c2w[:, :, 3] - centre
    return torch.rad2deg(torch.asin(offset[:, 2] / offset.norm(dim=-1)))


def test_an_orbit_closes(scene_cache: Path) -> None:
    data = tiny_scene(scene_cache)
    views = orbit(data, 12, elevation=25.0)
    centre = data.scene_box.aabb.mean(0)
    train = data.views("train")
    position = views.c2w[:, :, 3]
    radius = (train.c2w[:, :, 3] - centre).norm(dim=-1).mean()
    torch.testing.assert_close((position - centre).norm(dim=-1), radius.expand(12))
    torch.testing.assert_close(elevations(views, centre), torch.full((12,), 25.0), atol=1e-3, rtol=0)
    steps = (position - position.roll(1, 0)).norm(dim=-1)  # the one from the last to the first among them
    torch.testing.assert_close(steps, steps[:1].expand(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(steps[0], 2 * radius * math.cos(math.radians(25)) * math.sin(math.pi / 12))
    assert views.images.shape == (12, 24, 24, 3)
    assert views.images.untyped_storage().nbytes() == 1
    torch.testing.assert_close(views.intrinsics, train.intrinsics[:1].expand(12, 4))


def test_a_spiral_rises_through_the_training_cameras_elevations(scene_cache: Path) -> None:
    data = tiny_scene(scene_cache)
    centre = data.scene_box.aabb.mean(0)
    found = elevations(spiral(data, 40), centre)
    trained = elevations(data.views("train"), centre)
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
    views = orbit(tiny_scene(scene_cache), 2)
    large = resized(views, 72, 72)
    # The middle one of nine pixels that replace one has its centre.
    few, many = (image_rays(v, 1, 0.0, 1.0).directions for v in (views, large))
    torch.testing.assert_close(many.view(72, 72, 3)[1::3, 1::3], few.view(24, 24, 3), atol=1e-6, rtol=0)
    assert cameras_on(large, "cpu").images.shape == (2, 72, 72, 3)


def test_parts_of_a_view_are_its_rays(scene_cache: Path) -> None:
    views = orbit(tiny_scene(scene_cache), 2)
    whole = image_rays(views, 1, 0.5, 2.0)
    parts = [image_rays(views, 1, 0.5, 2.0, start, min(start + 100, 576)) for start in range(0, 576, 100)]
    for i in range(4):
        assert torch.equal(torch.cat([part[i] for part in parts]), whole[i])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start, stop: expected 0 <= start <= stop <= 576"):
        image_rays(views, 1, 0.5, 2.0, 500, 600)


def test_distances_to_a_box() -> None:
    box = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    eyes = torch.tensor([[4.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    views = Views(blank(2, 4, 4), look_at(eyes), torch.ones(2, 4))
    assert box_distances(views._replace(c2w=views.c2w[:1]), box, 0.1, 100.0) == pytest.approx((3.0, math.sqrt(27)))
    assert box_distances(views, box, 0.1, 100.0) == pytest.approx((0.1, math.sqrt(27)))  # from within: the near plane
    assert box_distances(views, box, 0.1, 4.0) == pytest.approx((0.1, 4.0))
