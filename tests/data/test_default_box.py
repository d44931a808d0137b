from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_nerf.cameras import Cameras
from lightning_nerf.cameras.poses import look_at, spiral_poses
from lightning_nerf.data.default_box import (
    DEFAULT_BOX,
    box_hint,
    central_rays,
    derive_box,
    fit_box,
    nearest_point,
    share_meeting,
    spread_rays,
)
from lightning_nerf.scene_box import SceneBox
from tests.scenes import tiny_module, tiny_scene, trainer

ANGLE = 0.6911112070083618  # of NeRF-Synthetic, whose cameras are 4.03 from the origin
DEFAULT = torch.tensor(DEFAULT_BOX)


def cameras(n: int, angle: float = ANGLE, width: int = 800, height: int = 800) -> tuple[Tensor, Tensor]:
    focal = 0.5 * width / math.tan(0.5 * angle)
    return torch.tensor([[focal, focal, width / 2, height / 2]]).expand(n, 4), torch.tensor([[height, width]]).expand(n, 2)


def moved(c2w: Tensor, offset: tuple[float, float, float] = (0.0, 0.0, 0.0), scale: float = 1.0) -> Tensor:
    c2w = c2w.clone()
    c2w[:, :, 3] = c2w[:, :, 3] * scale + torch.tensor(offset)
    return c2w


def sphere(n: int = 100, radius: float = 4.0311) -> Tensor:
    return spiral_poses(n, radius, (-5.0, 85.0))


@pytest.mark.parametrize(
    "c2w",
    [
        sphere(),
        sphere(50, 4.0311),
        spiral_poses(20, 4.0, (10.0, 12.0)),  # a turntable
        moved(sphere(), (1.4, -1.0, 0.5)),
        sphere(1),  # one camera; or several at one place, as D-NeRF's validation views
        sphere(1).expand(11, 3, 4),
        look_at(torch.tensor([[x, -4.0, 0.2] for x in (-0.5, 0.0, 0.5)]), (0.0, 1e4, 0.0)),  # parallel, towards the box
        look_at(torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.1, 0.0]]), (3.0, 3.0, 3.0)),  # from inside it
    ],
    ids=["sphere", "few", "turntable", "off center", "one", "one place", "parallel", "inside"],
)
def test_the_default_stays_where_cameras_look_into_it(c2w: Tensor) -> None:
    if c2w[0, 0, 3] == 0:  # cameras amid the scene look around
        c2w = torch.cat([c2w, look_at(torch.tensor([[0.0, 0.0, 0.1]]), (-3.0, 3.0, 0.0))])
    box, message = fit_box(c2w, *cameras(len(c2w)))
    assert torch.equal(box, DEFAULT)
    assert message is None


@pytest.mark.parametrize("center", [(12.8, 13.2, 5.2), (0.0, 0.0, -40.0)])
def test_an_object_elsewhere_gets_a_box_of_its_own(center: tuple[float, float, float]) -> None:
    box, message = fit_box(moved(sphere(), center), *cameras(100))
    torch.testing.assert_close(box.mean(0), torch.tensor(center), atol=1e-3, rtol=0)
    # What the pictures show in the object's plane, and a tenth more.
    half = 1.1 * 4.0311 * math.tan(0.5 * ANGLE)
    torch.testing.assert_close(box[1] - box[0], torch.full((3,), 2 * half), atol=1e-3, rtol=0)
    x, y, z = center
    assert message is not None
    assert f"the cameras look at ({x:.4g}, {y:.4g}, {z:.4g}), from about 4.031 away" in message
    assert "[[" in message
    assert message.startswith("aabb: none is given, and the default does not hold what the cameras see. Took [[")


def test_the_default_needs_half_of_the_rays() -> None:
    """Cameras on a ring that look past the box, all to one side of it: their nearest point is still in the middle."""
    positions = spiral_poses(40, 4.0, (-5.0, 5.0))[:, :, 3]
    aside = torch.linalg.cross(positions, torch.tensor([[0.0, 0.0, 1.0]]).expand(40, 3))
    aside = 6 * torch.nn.functional.normalize(aside, dim=-1)
    past = torch.cat([look_at(positions[i, None], aside[i].tolist()) for i in range(40)])
    origins, directions = central_rays(past, *cameras(40))
    assert float(nearest_point(origins, directions).abs().max()) < 1.5
    assert share_meeting(origins, directions, DEFAULT) < 0.5
    assert fit_box(past, *cameras(40))[1] is not None
    mixed = torch.cat([past, sphere(40)])
    assert fit_box(mixed, *cameras(80))[1] is None


def test_the_default_needs_the_point_that_cameras_look_at() -> None:
    """All rays pass through the default box on their way to an object behind it."""
    positions = torch.tensor([[-4.0, y, z] for y in (-0.5, 0.0, 0.5) for z in (-0.5, 0.0, 0.5)])
    c2w = look_at(positions, (6.0, 0.0, 0.0))
    assert share_meeting(*central_rays(c2w, *cameras(9)), DEFAULT) == 1.0
    box, message = fit_box(c2w, *cameras(9))
    assert message is not None
    torch.testing.assert_close(box.mean(0), torch.tensor([6.0, 0.0, 0.0]), atol=1e-3, rtol=0)


def test_a_stray_camera_does_not_move_the_box() -> None:
    c2w = moved(sphere(20), (10.0, 0.0, 0.0))
    stray = look_at(torch.tensor([[60.0, 50.0, 40.0]]), (60.0, 60.0, 60.0))
    box, _ = fit_box(torch.cat([c2w, stray]), *cameras(21))
    torch.testing.assert_close(box.mean(0), torch.tensor([10.0, 0.0, 0.0]), atol=1e-3, rtol=0)
    assert 1.4 < float(box[1, 0] - box[0, 0]) / 2 < 1.8


def test_a_crop_looks_through_its_own_middle() -> None:
    intrinsics, sizes = cameras(30)
    intrinsics = intrinsics.clone()
    intrinsics[:, :2] *= 2
    intrinsics[:, 2] = -100.0  # the axis is 500 pixels left of the picture's middle
    _, directions = central_rays(sphere(30), intrinsics, sizes)
    right, back = sphere(30)[:, :, 0].double(), sphere(30)[:, :, 2].double()
    slope = 500 / float(intrinsics[0, 0])
    expected = torch.nn.functional.normalize(slope * right - back, dim=-1)
    torch.testing.assert_close(directions, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**10])
def test_units_scale_the_box(scale: float) -> None:
    c2w = moved(sphere(), (13.0, 13.0, 5.0))
    box, _ = fit_box(c2w, *cameras(100))
    scaled, message = fit_box(moved(c2w, scale=scale), *cameras(100))
    if message is not None:
        assert torch.equal(scaled, box * scale)
    assert torch.equal(derive_box(moved(c2w, scale=scale), *cameras(100))[0], box * scale)


@pytest.mark.parametrize(
    ("c2w", "why"),
    [
        (look_at(torch.tensor([[20.0, -4.0, 0.0]]), (20.0, 0.0, 0.0)), "look the same way"),
        (look_at(torch.tensor([[20.0 + x, -4.0, 0.2] for x in (-1.0, 0.0, 1.0)]), (20.0, 1e4, 0.0)), "look the same way"),
        (look_at(torch.tensor([[9.0, 9.0, 9.0]] * 8) + sphere(8)[:, :, 3] / 4, (9.0, 9.0, 9.0)), "look at .9, 9, 9."),
    ],
    ids=["one", "parallel", "near"],
)
def test_cameras_that_tell_little_give_a_box_ahead_of_them(c2w: Tensor, why: str) -> None:
    intrinsics, sizes = cameras(len(c2w))
    box, message = fit_box(c2w, intrinsics, sizes)
    assert message is not None
    assert why.split(".")[0] in message
    assert bool((box[0] < box[1]).all())
    assert share_meeting(*central_rays(c2w, intrinsics, sizes), box) == 1.0


def test_cameras_that_look_outwards_are_amid_their_box() -> None:
    outwards = moved(sphere(30, 1.0), (20.0, 0.0, 0.0))
    outwards[:, :, 2] *= -1
    outwards[:, :, 0] *= -1
    box, message = fit_box(outwards, *cameras(30))
    assert message is not None
    assert "look outwards, so its size was guessed" in message
    positions = outwards[:, :, 3]
    assert bool(((positions > box[0]) & (positions < box[1])).all())


def test_rays_that_meet_a_box() -> None:
    box = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    rays = {
        "towards": ([4, 0, 0], [-1, 0, 0], 1),
        "away": ([4, 0, 0], [1, 0, 0], 0),
        "past": ([4, 2, 0], [-1, 0, 0], 0),
        "from inside": ([0, 0, 0], [0, 0, 1], 1),
        "along a face": ([4, 1, 0], [-1, 0, 0], 1),
        "slanted": ([2, 2, 2], [-1, -1, -1], 1),
    }
    for name, (origin, direction, meets) in rays.items():
        o, d = (torch.tensor([v], dtype=torch.float64) for v in (origin, direction))
        assert share_meeting(o, torch.nn.functional.normalize(d, dim=-1), box) == meets, name


def hint(
    c2w: Tensor, box: Tensor, contraction: str = "none", lens: tuple[float, int, int] = (ANGLE, 800, 800)
) -> str | None:
    intrinsics, sizes = cameras(len(c2w), *lens)
    return box_hint(Cameras(c2w, intrinsics, sizes.flip(1)), SceneBox(box, contraction))


@pytest.mark.parametrize(
    ("offset", "box", "few"),
    [
        ((0.0, 0.0, 0.0), DEFAULT, False),
        ((0.0, 0.0, 0.0), DEFAULT / 3, False),  # an object of a third
        ((0.0, 0.0, 0.0), DEFAULT / 10, True),  # in another unit
        ((12.8, 13.2, 5.2), DEFAULT, True),  # elsewhere
        ((12.8, 13.2, 5.2), DEFAULT + torch.tensor([12.8, 13.2, 5.2]), False),
    ],
)
@pytest.mark.parametrize("n", [1, 30, 500])
def test_a_box_that_few_rays_meet_is_told_with_one_that_would_fit(
    offset: tuple[float, float, float], box: Tensor, few: bool, n: int
) -> None:
    c2w = moved(sphere(n), offset)
    said = hint(c2w, box)
    assert (said is not None) == few
    if said is not None:
        corners = [float(x) for x in re.findall(r"-?[\d.]+", said.split("give the data aabb=")[1].split("]]")[0])]
        fitting = torch.tensor(corners).view(2, 3)
        assert share_meeting(*spread_rays(c2w, *cameras(n)), fitting) > 0.9
    assert hint(c2w, box, "l2") is None  # a contracted field does not end at its box


def test_a_box_is_looked_for_from_all_of_a_wide_picture() -> None:
    """An object at the picture's left edge, which no central ray meets."""
    c2w = look_at(torch.tensor([[0.0, -4.0, 0.0]]), (0.0, 0.0, 0.0))
    beside = torch.tensor([[-3.0, -1.0, -1.0], [-1.5, 1.0, 1.0]])
    lens = (1.2, 800, 400)
    assert share_meeting(*central_rays(c2w, *cameras(1, *lens)), beside) == 0
    assert hint(c2w, beside, lens=lens) is None


@pytest.mark.parametrize(("box", "said"), [([[-0.05] * 3, [0.05] * 3], 1), (None, 0)])
def test_a_fit_whose_box_few_rays_meet_says_so_once(
    tmp_path: Path, scene_cache: Path, box: list[list[float]] | None, said: int
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, max_steps=2).fit(tiny_module(), tiny_scene(scene_cache, **({} if box is None else {"aabb": box})))
    assert sum("of the training rays meet the scene's box" in str(w.message) for w in caught) == said
