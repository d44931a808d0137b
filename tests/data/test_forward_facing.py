"""Captures of cameras that look one way, in normalized device coordinates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf import CaptureData
from lightning_nerf.callbacks import Turntable
from lightning_nerf.cameras.cameras import Cameras, image_rays
from lightning_nerf.cameras.paths import orbit, sway
from lightning_nerf.data.captured_box import cameras_to_world
from lightning_nerf.data.forward_facing import fit_forward
from lightning_nerf.estimators import Proposal
from lightning_nerf.fields import InstantNGPField, ProposalField
from lightning_nerf.modules import UnboundedNeRF
from lightning_nerf.types import Render
from tests.data.captures import (
    CENTER,
    FOCAL,
    H,
    W,
    facing_poses,
    write_colmap,
    write_llff,
    write_transforms,
)
from tests.scenes import trainer

AHEAD = [[CENTER[0] + x, CENTER[1] + z, CENTER[2] - y] for x in (-1, 1) for y in (4, 5, 30) for z in (-1, 1)]


def llff(root: Path) -> CaptureData:
    return CaptureData(write_llff(root, poses=facing_poses), contraction="ndc")


def colmap(root: Path, **options: Any) -> CaptureData:
    return CaptureData(write_colmap(root, poses=facing_poses, points=AHEAD, **options), contraction="ndc")


def check_cube(data: CaptureData, box_share: float) -> None:
    """All that rays see behind the front face is in the cube, and little of the cube is seen by none."""
    box = data.scene_box
    box = box._replace(aabb=box.aabb * torch.tensor([box_share, 1.0, box_share]))
    seen = []
    for split in ("train", "test"):
        cameras = data.scene(split).cameras
        for i in range(cameras.n_views):
            rays = image_rays(cameras, i)
            assert float(rays.near.min()) > 0
            share = torch.linspace(0, 1, 64)
            t = 1 / torch.lerp(1 / rays.near[:, None], 1 / rays.far[:, None], share)
            points = rays.origins[:, None] + t[..., None] * rays.directions[:, None]
            assert float(points[:, 0, 1].min()) > 0.4  # rays begin not long before the front face
            seen.append(box.to_unit(points[points[..., 1] >= 1]))
    unit = torch.cat(seen)
    assert bool(((unit >= 0) & (unit <= 1)).all())
    assert (unit.amin(0) < 0.1).all()
    assert (unit.amax(0) > 0.8).all()


@pytest.mark.parametrize("make", [llff, colmap])
def test_what_the_pictures_show_fills_the_cube(make: Callable[[Path], CaptureData], tmp_path: Path) -> None:
    data = make(tmp_path)
    assert data.scene_box.contraction == "ndc"
    check_cube(data, 1.0)
    with pytest.raises(AssertionError):
        check_cube(data, 0.9)
    c2w = torch.cat([data.scene(split).cameras.c2w for split in ("train", "test")])
    torch.testing.assert_close(c2w[:, :, 3].mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    assert (c2w[:, 1, 2] < -0.97).all()  # backwards is -y
    assert (c2w[:, 2, 1] > 0.97).all()  # up is z


def test_the_scenes_units_are_undone_to_those_of_the_files(tmp_path: Path) -> None:
    data = llff(tmp_path)
    to_world = data.to_world()
    assert to_world is not None
    back = cameras_to_world(data.scene("test").cameras, to_world)
    torch.testing.assert_close(back.c2w, facing_poses(9)[[0, 8]], rtol=0, atol=1e-5)
    assert back.bounds is not None
    assert float(back.bounds[0, 0]) == pytest.approx(1.5)  # 0.75 of the nearest point's distance


def test_box_and_units_come_with_the_state_where_the_folder_is_not(tmp_path: Path) -> None:
    data = llff(tmp_path)
    state = data.state_dict()
    other = CaptureData(tmp_path / "gone", contraction="ndc")
    other.load_state_dict(state)
    assert torch.equal(other.scene_box.aabb, data.scene_box.aabb)
    assert other.scene_box.contraction == "ndc"
    own = CaptureData(tmp_path / "gone", contraction="ndc", aabb=[[-1, 1, -1], [1, 2, 1]])
    own.load_state_dict(state)
    assert own.scene_box.aabb.tolist() == [[-1, 1, -1], [1, 2, 1]]


def test_points_without_a_stated_distance_say_where_the_box_begins(tmp_path: Path) -> None:
    data = colmap(tmp_path)
    to_world = data.to_world()
    assert to_world is not None
    scale = float(torch.linalg.det(to_world[:3, :3]) ** (1 / 3))
    assert scale == pytest.approx(0.75 * 4, rel=0.05)  # of the nearest points, 4 ahead
    assert data.scene("train").cameras.bounds is not None


def behind(n: int) -> Tensor:
    """One of the cameras stands far ahead of the others."""
    poses = facing_poses(n)
    poses[0, :, 3] -= 6 * poses[0, :, 2]
    return poses


REFUSED: dict[str, tuple[Callable[[Path], CaptureData], str]] = {
    "cameras around an object": (
        lambda root: CaptureData(write_llff(root), contraction="ndc"),
        "'ndc' is for cameras that look one way, expected all rays within 75 degrees of it, got one at",
    ),
    "a camera beyond what others see": (
        lambda root: CaptureData(write_llff(root, poses=behind), contraction="ndc"),
        "expected cameras side by side, got content",
    ),
    "no distances": (
        lambda root: CaptureData(write_transforms(root), contraction="ndc"),
        "'ndc' begins where content does, which files of transforms do not state",
    ),
    "a wide lens": (
        lambda root: colmap(root, model="OPENCV_FISHEYE", params=[FOCAL, FOCAL, W / 2, H / 2, 0, 0, 0, 0]),
        "expected lenses of kind pinhole or opencv, got fisheye",
    ),
    "the files' units": (
        lambda root: CaptureData(write_llff(root, poses=facing_poses), contraction="ndc", normalize=False),
        "normalize: expected True with contraction 'ndc'",
    ),
    "a box around the cameras": (
        lambda root: CaptureData(root, contraction="ndc", aabb=[[-1, -1, -1], [1, 1, 1]]),
        "aabb: expected a minimum of y > 0 with contraction 'ndc'",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_captures_without_such_coordinates_are_refused(what: str, tmp_path: Path) -> None:
    make, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        make(tmp_path).setup("fit")


def test_cameras_without_points_or_distances_are_refused() -> None:
    given = facing_poses(3), torch.full((3, 4), FOCAL), torch.tensor([[H, W]] * 3)
    with pytest.raises(ValueError, match=r"expected a capture with points .* or nearest distances"):
        fit_forward(*given)
    assert fit_forward(*given, nearest=torch.full((3,), 3.0)).scale == pytest.approx(3.0, rel=0.1)


def test_a_film_stays_where_the_cameras_were(tmp_path: Path) -> None:
    data = llff(tmp_path)
    train, box = data.scene("train").cameras, data.scene_box.aabb
    film = sway(train, box, 12)
    reach = train.c2w[:, :, 3].abs().amax(0)
    assert (film.c2w[:, :, 3].abs() <= 1.1 * reach).all()
    assert (film.c2w[:, 1, 2] < -0.9).all()
    assert float(orbit(train, box, 12).c2w[:, 1, 2].max()) > 0.5  # which looks from behind


def test_a_scene_is_trained_rendered_and_filmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    field = InstantNGPField(n_levels=4, log2_table_size=10, max_resolution=64, width=16)
    estimator = Proposal([ProposalField(n_levels=2, log2_table_size=8, max_resolution=32)], [16], 8, spacing="disparity")
    module = UnboundedNeRF(field, estimator, samples_per_step=1024, max_rays=128, initial_rays=128, seed=3)
    filmed: list[Tensor] = []
    render_camera = UnboundedNeRF.render_camera

    def recorded(self: UnboundedNeRF, cameras: Cameras, index: int, background: Tensor | None = None) -> Render:
        filmed.append(cameras.c2w[index])
        return render_camera(self, cameras, index, background)

    monkeypatch.setattr(UnboundedNeRF, "render_camera", recorded)
    data = llff(tmp_path)
    fit = trainer(tmp_path, max_steps=30, callbacks=[Turntable(n_frames=3)])
    fit.fit(module, datamodule=data)
    assert fit.global_step == 30
    fit.test(module, datamodule=data, verbose=False)
    assert list(tmp_path.rglob("turntable.*"))
    assert len(filmed) > 3
    assert all(float(c2w[1, 2]) < -0.9 for c2w in filmed)  # none looks from behind
    render = module.render_view("test", 0, data)
    assert bool(render.rgb.isfinite().all())
    assert float(render.opacity.max()) > 0


def test_the_ray_of_a_pinhole_is_a_line_in_the_cube(tmp_path: Path) -> None:
    """So perspective keeps lines, and NeRF's appendix samples rays evenly there: even in 1 / depth."""
    data = llff(tmp_path)
    cameras: Cameras = data.scene("train").cameras
    rays = image_rays(cameras, 0)
    depth = 1 / torch.linspace(1 / 1.2, 1 / 6.0, 9)  # y of the points
    t = (depth - rays.origins[:, 1:2]) / rays.directions[:, 1:2]
    points = data.scene_box.to_unit(rays.origins[:, None] + t[..., None] * rays.directions[:, None])
    steps = points.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=0, atol=1e-5)
