from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_nerf.cameras import Cameras, image_rays, pixel_rays
from lightning_nerf.cameras.cameras import LENS_MODELS, check_values, checked_cameras
from lightning_nerf.cameras.frusta import as_pinholes, frustum_intrinsics
from lightning_nerf.cameras.paths import orbit, resized, spiral
from lightning_nerf.data import Images, Scene
from lightning_nerf.data.camera_files import camera_entry, read_cameras, write_cameras
from lightning_nerf.data.seen_pixels import without_unseen_pixels
from lightning_nerf.ops import lenses
from lightning_nerf.ops.draw_rays import draw_rays
from lightning_nerf.ops.lens_rays import project
from lightning_nerf.ops.lenses import EQUIRECTANGULAR, FISHEYE, OPENCV, PINHOLE, Lens
from lightning_nerf.ops.random import make_key
from tests.data.numbered import FAR, MIXED, NEAR, NumberedData, NumberedSource, drawn_pixels, numbered_scene
from tests.ops.harness import rand

FOX = [0.0578421, -0.0805099, -0.000980296, 0.00015575, 0, 0, 0, 0]
FISH = [0.05, 0.02, -0.01, 0.002, 0, 0, 0, 0]
FOLDING = [-3.0, 0, 0, 0, 0, 0, 0, 0]  # up to a radius of a third, seen at 2/9
NONE = [0.0] * 8
UNIT_BOX = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])


def through(cameras: Cameras, models: list[int], coefficients: list[list[float]]) -> Cameras:
    return cameras._replace(lens_model=torch.tensor(models), lens=torch.tensor(coefficients))


def mixed() -> Cameras:
    return through(numbered_scene(MIXED).cameras, [OPENCV, PINHOLE, FISHEYE], [FOX, NONE, FISH])


def folding_scene() -> Scene:
    """Three pictures of which the first and the last are seen in the middle alone."""
    scene = numbered_scene(MIXED)
    return scene._replace(cameras=through(scene.cameras, [OPENCV, OPENCV, OPENCV], [FOLDING, FOX, FOLDING]))


def expected_seen(scene: Scene) -> Tensor:
    """[P]: within 2/9 of the principal point, in focal lengths, for folding lenses."""
    seen = []
    for view, (width, height) in enumerate(scene.cameras.size.tolist()):
        fx, fy, cx, cy = scene.cameras.intrinsics[view].tolist()
        is_folding = scene.cameras.lens is not None and float(scene.cameras.lens[view, 0]) == -3
        for y in range(height):
            for x in range(width):
                radius = math.hypot((x + 0.5 - cx) / fx, (y + 0.5 - cy) / fy)
                assert abs(radius - 2 / 9) > 1e-4  # so that the test is clear
                seen.append(not is_folding or radius < 2 / 9)
    return torch.tensor(seen)


def test_places_of_lens_models_are_those_of_the_ops() -> None:
    names = {"pinhole": PINHOLE, "opencv": OPENCV, "fisheye": FISHEYE, "equirectangular": EQUIRECTANGULAR}
    assert {name: LENS_MODELS.index(name) for name in LENS_MODELS} == names
    assert lenses.__doc__ is not None
    assert all(name in lenses.__doc__ for name in LENS_MODELS)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_rays_of_a_picture_go_through_its_lens(index: int) -> None:
    cameras = mixed()
    rays = image_rays(cameras, index)
    width, height = MIXED[index]
    y, x = (t.reshape(-1) for t in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    same = pixel_rays(cameras, torch.full((len(x),), index), x, y)
    for ours, theirs in zip(rays._replace(cameras=same.cameras), same, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    c2w, intrinsics = cameras.c2w[index], cameras.intrinsics[index, None]
    assert cameras.lens_model is not None
    assert cameras.lens is not None
    lens = Lens(cameras.lens_model[index, None], cameras.lens[index, None])
    column, row = project(intrinsics, lens, rays.directions.double() @ c2w[:, :3].double())
    torch.testing.assert_close(column, x.double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(row, y.double(), rtol=0, atol=1e-5)
    assert rays.near.tolist() == [pytest.approx(NEAR)] * len(x)
    parts = [image_rays(cameras, index, start, min(start + 3, len(x))).directions for start in range(0, len(x), 3)]
    assert torch.equal(torch.cat(parts), rays.directions)


def test_rays_that_no_lens_lets_in_are_inactive() -> None:
    scene = folding_scene()
    rays = [image_rays(scene.cameras, index) for index in range(3)]
    near, far = torch.cat([r.near for r in rays]), torch.cat([r.far for r in rays])
    seen = expected_seen(scene)
    assert 0 < int((~seen).sum()) < 47
    torch.testing.assert_close(near, NEAR * seen)
    torch.testing.assert_close(far, FAR * seen)
    assert all(bool(r.directions.isfinite().all()) for r in rays)
    torch.testing.assert_close(rays[0].directions.norm(dim=-1), torch.ones(20))


@pytest.mark.parametrize("is_masked", [True, False])
def test_pixels_that_a_lens_does_not_see_are_not_drawable(is_masked: bool) -> None:
    masked = rand(61, seed=8) < 0.4 if is_masked else torch.zeros(61, dtype=torch.bool)
    scene = folding_scene()._replace(images=numbered_scene(MIXED, masked=masked if is_masked else None).images)
    drawable = without_unseen_pixels(scene).images.drawable
    assert drawable is not None
    expected = expected_seen(scene) & ~masked
    assert drawable.tolist() == expected.nonzero()[:, 0].tolist()


def test_scenes_whose_lenses_see_all_stay_as_they_are() -> None:
    scene = numbered_scene(MIXED)
    assert without_unseen_pixels(scene) is scene
    scene = scene._replace(cameras=mixed())
    assert without_unseen_pixels(scene) is scene
    assert without_unseen_pixels(scene._replace(cameras=scene.cameras.chosen(slice(0, 0)))).images.drawable is None


class FoldingSource(NumberedSource):
    def read(self, split: str) -> Scene:
        scene = folding_scene()
        return scene._replace(cameras=scene.cameras._replace(bounds=None, times=None))


def test_training_never_draws_what_no_lens_sees() -> None:
    data = NumberedData()
    data.source = FoldingSource()
    batch = data.draw(make_key(0), 5000)
    assert set(drawn_pixels(batch).tolist()) == set(expected_seen(folding_scene()).nonzero()[:, 0].tolist())
    scene = data.scene("train")
    unseen = without_unseen_pixels(folding_scene())
    batch = draw_rays(unseen.pixels(), make_key(1), 300)
    view = batch.rays.cameras
    assert view is not None
    inside = drawn_pixels(batch) - scene.images.offsets[view]
    width = scene.cameras.size[view, 0]
    same = pixel_rays(unseen.cameras, view, inside % width, inside // width)
    torch.testing.assert_close(batch.rays.directions, same.directions, rtol=0, atol=1e-6)
    torch.testing.assert_close(batch.rays.footprint, same.footprint, rtol=1e-6, atol=0)


def test_rays_are_differentiable_in_the_lens() -> None:
    cameras = mixed()
    index, x, y = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 8, 0]), torch.tensor([3, 6, 2, 1])

    def rays(c2w: Tensor, intrinsics: Tensor, lens: Tensor) -> list[Tensor]:
        found = pixel_rays(cameras._replace(c2w=c2w, intrinsics=intrinsics, lens=lens), index, x, y)
        return [t for t in (found.origins, found.directions, found.footprint) if t is not None]

    assert cameras.lens is not None
    learned = [t.double().requires_grad_() for t in (cameras.c2w, cameras.intrinsics, cameras.lens)]
    assert torch.autograd.gradcheck(rays, learned)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lens": None}, "cameras.lens_model, cameras.lens: expected both or none"),
        ({"lens_model": None}, "cameras.lens_model, cameras.lens: expected both or none"),
        ({"lens": torch.zeros(3, 4)}, r"cameras.lens: expected shape \[3, 8\], got \[3, 4\]"),
        ({"lens": torch.zeros(3, 8).double()}, "cameras.lens: expected dtype torch.float32, got torch.float64"),
        ({"lens_model": torch.zeros(3)}, "cameras.lens_model: expected dtype torch.int64, got torch.float32"),
        ({"lens_model": torch.zeros(2).long()}, r"cameras.lens_model: expected shape \[3\], got \[2\]"),
        ({"lens_model": torch.tensor([0, 4, 1])}, "cameras.lens_model: expected 0 to 3, .*, got 4 in view 1"),
        ({"lens_model": torch.tensor([0, 1, -1])}, "cameras.lens_model: expected 0 to 3, .*, got -1 in view 2"),
        (
            {"lens": torch.tensor([NONE, NONE, [math.nan, *NONE[1:]]])},
            "cameras.lens: expected finite numbers, .* in view 2",
        ),
    ],
)
def test_lenses_that_are_none_are_named(change: dict[str, Tensor | None], message: str) -> None:
    check_values("cameras", checked_cameras("cameras", mixed()))
    with pytest.raises(ValueError, match=message):
        check_values("cameras", checked_cameras("cameras", mixed()._replace(**change)))  # type: ignore[arg-type]


def test_other_sizes_keep_the_lens() -> None:
    cameras = mixed().chosen([0])
    large = resized(cameras, 50, 40)
    assert large.lens is not None
    x, y = torch.arange(5.0), torch.zeros(5)
    few = pixel_rays(cameras, torch.zeros(5).long(), x, y)
    many = pixel_rays(large, torch.zeros(5).long(), 10 * x + 4.5, 10 * y + 4.5)
    torch.testing.assert_close(few.directions, many.directions, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("model", "focal"), [(OPENCV, 6.0), (FISHEYE, 25.0), (EQUIRECTANGULAR, 25.0)])
def test_paths_go_through_pinholes(model: int, focal: float) -> None:
    cameras = through(numbered_scene(((50, 40),)).cameras, [model], [NONE])
    for path in (orbit(cameras, UNIT_BOX, 4), spiral(cameras, UNIT_BOX, 4), orbit(cameras, UNIT_BOX, 4, framed=UNIT_BOX)):
        assert path.lens_model is None
        assert path.lens is None
        assert float(path.intrinsics[0, 0]) == pytest.approx(focal, abs=1)
    assert as_pinholes(numbered_scene().cameras).intrinsics is not None


def test_a_frustum_holds_all_that_a_lens_sees() -> None:
    size = torch.tensor([[1920, 1080], [1080, 1920], [1920, 1440]])
    intrinsics = torch.tensor([[990.0, 992, 961, 535], [1375, 1374, 554, 965], [1100, 1100, 900, 730]])
    barrel = [-0.25, 0.082, 0.001, -0.003, -0.012, 0, 0, 0]
    cameras = Cameras(torch.eye(4)[:3].expand(3, 3, 4).contiguous(), intrinsics, size).bounded(0.0, 1.0)
    cameras = through(cameras, [OPENCV, OPENCV, FISHEYE], [barrel, FOX, FISH])
    planes = frustum_intrinsics(cameras)
    assert planes is not None
    for view in range(3):
        directions = image_rays(cameras, view).directions[::97]
        fx, fy, cx, cy = planes[view].tolist()
        column, row = cx - fx * directions[:, 0] / directions[:, 2], cy + fy * directions[:, 1] / directions[:, 2]
        width, height = size[view].tolist()
        assert bool(((column >= 0) & (column <= width) & (row >= 0) & (row <= height)).all())
        assert float(column.max() - column.min()) > 0.95 * width  # and not much more
    wide = cameras._replace(intrinsics=intrinsics * torch.tensor([0.3, 0.3, 1, 1]))
    assert frustum_intrinsics(wide) is None
    assert frustum_intrinsics(through(cameras, [EQUIRECTANGULAR] * 3, [NONE] * 3)) is None
    assert frustum_intrinsics(through(cameras, [OPENCV] * 3, [FOLDING] * 3)) is None
    assert frustum_intrinsics(cameras._replace(lens_model=None, lens=None)) is cameras.intrinsics


@pytest.mark.parametrize(
    ("model", "coefficients", "expected"),
    [
        (PINHOLE, NONE, {"camera_model": "PINHOLE"}),
        (
            OPENCV,
            [0.5, 0.25, 0.125, 2, 4, 0, 0, 0],
            {"camera_model": "OPENCV", "k1": 0.5, "k2": 0.25, "p1": 0.125, "p2": 2, "k3": 4},
        ),
        (
            OPENCV,
            [1, 2, 3, 4, 5, 6, 7, 8],
            {"camera_model": "FULL_OPENCV", "k1": 1, "k2": 2, "p1": 3, "p2": 4, "k3": 5, "k4": 6, "k5": 7, "k6": 8},
        ),
        (FISHEYE, [1, 2, 3, 4, 0, 0, 0, 0], {"camera_model": "OPENCV_FISHEYE", "k1": 1, "k2": 2, "k3": 3, "k4": 4}),
        (EQUIRECTANGULAR, NONE, {"camera_model": "EQUIRECTANGULAR"}),
    ],
)
def test_camera_files_name_the_lens(model: int, coefficients: list[float], expected: dict[str, object]) -> None:
    cameras = through(numbered_scene(((5, 4),)).cameras, [model], [coefficients])
    entry = camera_entry(cameras, 0)
    assert {key: value for key, value in entry.items() if key == "camera_model" or key[0] in "kp"} == expected
    assert (entry["w"], entry["h"]) == (5, 4)


@pytest.mark.parametrize("with_lenses", [False, True])
def test_written_cameras_are_read_again(with_lenses: bool, tmp_path: Path) -> None:
    cameras = numbered_scene(((6, 4), (6, 4), (6, 4))).cameras
    if with_lenses:
        cameras = through(cameras, [OPENCV, FISHEYE, OPENCV], [FOX, FISH, FOX])
    write_cameras(tmp_path / "transforms.json", cameras, ["a.png", "b.png", "c.png"])
    assert [f["file_path"] for f in json.loads((tmp_path / "transforms.json").read_text())["frames"]] == [
        "a.png",
        "b.png",
        "c.png",
    ]
    again = read_cameras(tmp_path / "transforms.json", cameras)
    for ours, theirs in zip(again, cameras, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)
    turned = torch.tensor([[0.0, -2, 0, 1], [2, 0, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]])
    moved = read_cameras(tmp_path / "transforms.json", cameras, to_world=turned)  # from files' units to the scene's
    there = turned[:3, :3] @ moved.c2w[:, :, 3:] + turned[:3, 3:]
    torch.testing.assert_close(there, cameras.c2w[:, :, 3:])
    torch.testing.assert_close(turned[:3, :3] @ moved.c2w[:, :, :3] / 2, cameras.c2w[:, :, :3])
    with pytest.raises(ValueError, match="names: expected 3, one of each camera, got 1"):
        write_cameras(tmp_path / "transforms.json", cameras, ["a.png"])


def test_rays_through_lenses_meet_at_the_point_that_the_pictures_show() -> None:
    point = torch.tensor([[0.1, -0.2, 0.15]]).double()
    cameras = mixed()
    colors = [torch.zeros(h, w, 3, dtype=torch.uint8) for w, h in MIXED]
    assert Scene(cameras, Images.from_pictures(colors), ["a", "b", "c"]).pixels().lens is cameras.lens
    assert cameras.lens_model is not None
    assert cameras.lens is not None
    for view in range(3):
        rotation, eye = cameras.c2w[view, :, :3].double(), cameras.c2w[view, :, 3].double()
        lens = Lens(cameras.lens_model[view, None], cameras.lens[view, None])
        x, y = project(cameras.intrinsics[view, None], lens, (point - eye) @ rotation)
        rays = pixel_rays(cameras, torch.tensor([view]), x.float(), y.float())
        away = torch.linalg.cross(point - eye, rays.directions.double()).norm()
        assert float(away) < 1e-5
