from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.lens_rays import lens_rays, project, reference, unproject, valid_pixels
from lightning_nerf.ops.lenses import EQUIRECTANGULAR, FISHEYE, OPENCV, PINHOLE, Lens, radius_limit
from tests.ops.harness import DEVICES, assert_detected, check_op, rand

# All but the last rounding is of float64; sines and cosines of the GPU may turn that one.
TOLERANCE = {"rtol": 2.0**-23, "atol": 2.0**-24}


class Camera(NamedTuple):
    model: int
    coefficients: tuple[float, ...]
    size: tuple[int, int]
    intrinsics: tuple[float, float, float, float]


# Of real phones and action cameras, or like theirs.
CAMERAS = {
    "pinhole": Camera(PINHOLE, (), (1080, 1920), (1375.52, 1374.49, 554.558, 965.268)),
    "fox": Camera(
        OPENCV, (0.0578421, -0.0805099, -0.000980296, 0.00015575), (1080, 1920), (1375.52, 1374.49, 554.558, 965.268)
    ),
    "phone": Camera(OPENCV, (0.21, -0.62, 0.0009, -0.0021, 0.55), (1600, 1200), (1190.0, 1191.2, 791.3, 602.9)),
    "action camera": Camera(OPENCV, (-0.25, 0.082, 0.0001, -0.0003, -0.012), (1920, 1080), (990, 992, 961.3, 535.2)),
    "rational": Camera(
        OPENCV, (8.7, 2.6, 0.0001, -0.0003, 0.09, 9.07, 5.6, 0.49), (1920, 1080), (900.0, 900.0, 961.3, 535.2)
    ),
    "wide fisheye": Camera(FISHEYE, (0.05, 0.02, -0.01, 0.002), (1920, 1440), (880.0, 882.0, 961.3, 715.2)),
    "fisheye of 200 degrees": Camera(FISHEYE, (0.01, -0.002), (1600, 1600), (480.0, 480.0, 801.0, 797.0)),
    "panorama": Camera(EQUIRECTANGULAR, (), (2048, 1024), (1024 / math.pi, 1024 / math.pi, 1024.0, 512.0)),
}
FOLDING = Camera(OPENCV, (-0.5,), (1920, 1440), (880.0, 880.0, 960.0, 720.0))


def lens_of(camera: Camera) -> Lens:
    padding = (0.0,) * (8 - len(camera.coefficients))
    return Lens(torch.tensor([camera.model]), torch.tensor([[*camera.coefficients, *padding]]))


def intrinsics_of(camera: Camera) -> Tensor:
    return torch.tensor([camera.intrinsics])


def grid(camera: Camera, n: int = 61) -> tuple[Tensor, Tensor]:
    """Pixels [n^2] all over the picture, its border among them."""
    width, height = camera.size
    x, y = torch.linspace(0, width - 1, n).round(), torch.linspace(0, height - 1, n).round()
    return x.repeat(n), y.repeat_interleave(n)


def arguments(names: list[str], n: int = 300) -> list[Any]:
    """n rays of cameras in turn; of a single one: a row for all of them."""
    which = [names[i % len(names)] for i in range(n)] if len(names) > 1 else names
    rows = len(which)
    c2w = torch.cat([torch.linalg.qr(rand(rows, 3, 3, seed=1, low=-1))[0], rand(rows, 3, 1, seed=2, low=-4, high=4)], -1)
    intrinsics = torch.cat([intrinsics_of({**CAMERAS, "folding": FOLDING}[name]) for name in which])
    lenses = [lens_of({**CAMERAS, "folding": FOLDING}[name]) for name in which]
    lens = Lens(torch.cat([each.model for each in lenses]), torch.cat([each.coefficients for each in lenses]))
    x, y = rand(n, seed=3, high=1400).floor(), rand(n, seed=4, high=1000).floor()
    return [c2w, intrinsics, *lens, radius_limit(lens), x, y]


CASES = {name: [name] for name in [*CAMERAS, "folding"]} | {"all in turn": [*CAMERAS, "folding"]}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_kernel_matches_the_reference(device: str, case: str) -> None:
    check_op("lens_rays", reference, arguments(CASES[case]), device=device, **TOLERANCE)


def test_no_rays_are_no_error() -> None:
    args = arguments(["fox"])
    directions, footprint, valid = torch.ops.lightning_nerf.lens_rays(*args[:5], torch.empty(0), torch.empty(0))
    assert (directions.shape, footprint.shape, valid.shape) == ((0, 3), (0,), (0,))


@pytest.mark.parametrize("place", [0, 1, 3, 5], ids=["p1 and p2 change places", "columns", "k2 and k1", "x"])
def test_the_comparison_detects(place: int) -> None:
    def mutated(*args: Any) -> tuple[Tensor, ...]:
        changed = list(args)
        if place == 0:
            changed[3] = changed[3][:, [0, 1, 3, 2, 4, 5, 6, 7]]
        elif place == 3:
            changed[3] = changed[3][:, [1, 0, 2, 3, 4, 5, 6, 7]]
        else:
            changed[place] = changed[place].flip(-1)
        return reference(*changed)

    args = arguments(CASES["all in turn"])
    check_op("lens_rays", reference, args, device="cpu", opcheck=False, **TOLERANCE)
    assert_detected(lambda: check_op("lens_rays", mutated, args, device="cpu", opcheck=False, **TOLERANCE))


def projected_by_hand(camera: Camera, point: Tensor) -> tuple[Tensor, Tensor]:
    """Of points [R, 3] in OpenGL axes, as OpenCV's documentation writes it; x and y of the center of a pixel end in .5."""
    x, y, z = point[:, 0].double(), -point[:, 1].double(), -point[:, 2].double()
    k, (fx, fy, cx, cy) = lens_of(camera).coefficients[0].tolist(), intrinsics_of(camera)[0].tolist()
    if camera.model == EQUIRECTANGULAR:
        u, v = torch.atan2(x, z), torch.asin(y / point.double().norm(dim=-1))
    elif camera.model == FISHEYE:
        theta = torch.acos(z / point.double().norm(dim=-1))
        angle = theta * (1 + k[0] * theta**2 + k[1] * theta**4 + k[2] * theta**6 + k[3] * theta**8)
        u, v = angle * x / torch.hypot(x, y), angle * y / torch.hypot(x, y)
    else:
        a, b = x / z, y / z
        r = torch.hypot(a, b)
        if camera.model == PINHOLE:
            k = [0.0] * 8
        radial = (1 + k[0] * r**2 + k[1] * r**4 + k[4] * r**6) / (1 + k[5] * r**2 + k[6] * r**4 + k[7] * r**6)
        u = a * radial + 2 * k[2] * a * b + k[3] * (r**2 + 2 * a**2)
        v = b * radial + k[2] * (r**2 + 2 * b**2) + 2 * k[3] * a * b
    return fx * u + cx, fy * v + cy


def rounding(camera: Camera, directions: Tensor) -> Tensor:
    """Pixels [R] by which the rounding of directions to float32 may move them at most."""
    here, moved = torch.stack(projected_by_hand(camera, directions)), torch.zeros(2, len(directions)).double()
    for axis in torch.eye(3).double():
        moved += (torch.stack(projected_by_hand(camera, directions.double() + 1e-6 * axis)) - here).abs() / 1e-6
    return moved.amax(0) * 2.0**-25  # of components up to 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CAMERAS)
def test_rays_hit_their_pixel_to_a_ten_thousandth_over_the_whole_picture(device: str, name: str) -> None:
    camera = CAMERAS[name]
    x, y = grid(camera)
    lens = Lens(*(t.to(device) for t in lens_of(camera)))
    intrinsics = intrinsics_of(camera).to(device)
    valid = valid_pixels(intrinsics, lens, x.to(device), y.to(device)).cpu()
    directions = unproject(intrinsics, lens, x.to(device), y.to(device)).cpu()
    assert bool(valid.all())
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(len(x)))
    column, row = projected_by_hand(camera, directions)
    miss = torch.maximum((column - 0.5 - x).abs(), (row - 0.5 - y).abs())
    assert float(miss.max()) < 1e-4
    assert bool((miss <= 1e-5 + rounding(camera, directions)).all())
    again = project(intrinsics_of(camera), lens_of(camera), directions)
    assert float((again[0] - x).abs().max()) < 1e-4
    assert float((again[1] - y).abs().max()) < 1e-4


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("model", [OPENCV, FISHEYE])
def test_the_inverse_is_right_for_any_lens_wherever_it_sees(model: int, seed: int) -> None:
    if model == OPENCV:  # phones and action cameras
        spread = torch.tensor([0.35, 0.3, 0.004, 0.004, 0.2, 0.1, 0.05, 0.02])
        focal = float(rand(seed=seed + 99, low=800, high=1300))
    else:
        spread = torch.tensor([0.1, 0.05, 0.02, 0.005, 0, 0, 0, 0])
        focal = float(rand(seed=seed + 99, low=400, high=900))
    coefficients = tuple((rand(8, seed=seed, low=-1) * spread).tolist())
    center = rand(2, seed=seed + 50, low=-20, high=20)
    camera = Camera(
        model, coefficients, (1920, 1440), (focal, focal * 1.01, 960 + float(center[0]), 720 + float(center[1]))
    )
    x, y = grid(camera)
    lens, intrinsics = lens_of(camera), intrinsics_of(camera)
    found = lens_rays(torch.eye(4)[None, :3], intrinsics, lens, x, y)
    assert bool(found.directions.isfinite().all())
    assert bool(found.valid[len(x) // 2])
    column, row = project(intrinsics, lens, found.directions)
    miss = torch.maximum((column - x).abs(), (row - y).abs())[found.valid]
    assert bool((miss <= 1e-5 + rounding(camera, found.directions[found.valid])).all())
    # Where the radial distortion rises as far as the pixel, on a fine grid of radii, the pixel is seen.
    u, v = (x + 0.5 - camera.intrinsics[2]) / focal, (y + 0.5 - camera.intrinsics[3]) / (focal * 1.01)
    k = coefficients
    r = torch.linspace(0, math.pi if model == FISHEYE else 30, 200_001).double()
    if model == FISHEYE:
        distorted = r * (1 + k[0] * r**2 + k[1] * r**4 + k[2] * r**6 + k[3] * r**8)
    else:
        denominator = 1 + k[5] * r**2 + k[6] * r**4 + k[7] * r**6
        distorted = r * (1 + k[0] * r**2 + k[1] * r**4 + k[4] * r**6) / denominator
        distorted = torch.where((denominator <= 0).cummax(0).values, -torch.inf, distorted)
    falls = (distorted.diff() <= 0).nonzero()
    reach = float(distorted[: int(falls[0]) + 1 if len(falls) else None].max())
    margin = 0.03  # of the tangential part, which moves the border
    radius = torch.hypot(u, v)
    assert bool(found.valid[radius < reach * (1 - margin)].all())
    assert not bool(found.valid[radius > reach * (1 + margin)].any())


def test_large_pictures_lose_no_more_than_the_rounding_of_directions() -> None:
    fox = CAMERAS["fox"]
    camera = fox._replace(size=(3024, 4032), intrinsics=(3200.0, 3200.0, 1520.1, 2020.3))
    x, y = grid(camera)
    directions = unproject(intrinsics_of(camera), lens_of(camera), x, y)
    column, row = projected_by_hand(camera, directions)
    miss = torch.maximum((column - 0.5 - x).abs(), (row - 0.5 - y).abs())
    assert bool((miss <= 1e-5 + rounding(camera, directions)).all())
    assert float(miss.max()) < 2.5e-4


def test_pixels_beyond_a_fold_are_not_valid() -> None:
    """r (1 - r^2 / 2) rises up to r = sqrt(2 / 3), where it is 0.5443: 479 pixels from the center."""
    x, y = grid(FOLDING, 181)
    valid = valid_pixels(intrinsics_of(FOLDING), lens_of(FOLDING), x, y)
    distance = torch.hypot(x + 0.5 - 960, y + 0.5 - 720)
    edge = 880 * math.sqrt(2 / 3) * (1 - 1 / 3)
    assert bool(valid[distance < edge - 1e-2].all())
    assert not bool(valid[distance > edge + 1e-4].any())
    assert 0.2 < valid.float().mean() < 0.3
    torch.testing.assert_close(radius_limit(lens_of(FOLDING)), torch.tensor([math.sqrt(2 / 3)]), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("model", "coefficients", "expected"),
    [
        (PINHOLE, (), math.inf),
        (EQUIRECTANGULAR, (), math.inf),
        (OPENCV, (0.1,), math.inf),
        (OPENCV, (-0.1,), math.sqrt(1 / 0.3)),
        (OPENCV, (0.0, 0.0, 0.0, 0.0, 0.0, -0.25), 2.0),  # a pole: the denominator is 0 there
        (FISHEYE, (), math.pi),
        (FISHEYE, (-0.1,), math.sqrt(1 / 0.3)),
        (FISHEYE, (-0.02,), math.pi),
    ],
)
def test_the_limit_of_a_lens_is_where_its_distortion_ends_to_rise(
    model: int, coefficients: tuple[float, ...], expected: float
) -> None:
    limit = radius_limit(lens_of(Camera(model, coefficients, (1, 1), (1, 1, 0, 0))))
    torch.testing.assert_close(limit, torch.tensor([expected]), rtol=1e-2 if coefficients[5:] else 1e-4, atol=0)


def test_a_fisheye_sees_behind_itself_up_to_half_a_turn() -> None:
    camera = Camera(FISHEYE, (), (1000, 1), (100.0, 100.0, 0.0, 0.5))
    x = torch.tensor([0.0, 157.0, 200.0, 313.0, 314.0, 400.0])
    rays = lens_rays(torch.eye(4)[None, :3], intrinsics_of(camera), lens_of(camera), x, torch.zeros(6))
    angle = (x + 0.5) / 100
    expected = torch.stack([angle.sin(), torch.zeros(6), -angle.cos()], -1)
    torch.testing.assert_close(rays.directions[:4], expected[:4], rtol=0, atol=3e-7)
    assert rays.directions[4:].tolist() == [[0, 0, -1]] * 2
    assert rays.valid.tolist() == [True, True, True, True, False, False]


def test_a_panorama_ends_at_the_poles_and_the_seam() -> None:
    camera = Camera(EQUIRECTANGULAR, (), (360, 180), (180 / math.pi, 180 / math.pi, 180.0, 90.0))
    x, y = torch.tensor([0.0, 179.5, 359.0, -1, 360, 9, 9]), torch.tensor([0.0, 89.5, 179.0, 9, 9, -1, 180])
    assert valid_pixels(intrinsics_of(camera), lens_of(camera), x, y).tolist() == [True] * 3 + [False] * 4
    middle, right, top = unproject(
        intrinsics_of(camera), lens_of(camera), torch.tensor([179.5, 269.5, 179.5]), torch.tensor([89.5, 89.5, -0.5])
    )
    torch.testing.assert_close(middle, torch.tensor([0.0, 0, -1]), rtol=0, atol=1e-6)
    torch.testing.assert_close(right, torch.tensor([1.0, 0, 0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(top, torch.tensor([0.0, 1, 0]), rtol=0, atol=1e-6)


def test_a_lens_without_distortion_is_a_pinhole() -> None:
    pinhole = CAMERAS["pinhole"]
    x, y = grid(pinhole)
    rays = [
        lens_rays(torch.eye(4)[None, :3], intrinsics_of(pinhole), lens_of(pinhole._replace(model=model)), x, y)
        for model in (PINHOLE, OPENCV)
    ]
    assert torch.equal(rays[0].directions, rays[1].directions)
    assert torch.equal(rays[0].footprint, rays[1].footprint)
    u, v = (x + 0.5 - 554.558) / 1375.52, (y + 0.5 - 965.268) / 1374.49
    footprint = 1 / (1375.52 * 1374.49 * (1 + u * u + v * v)).sqrt()
    torch.testing.assert_close(rays[0].footprint, footprint, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", CAMERAS)
def test_a_footprint_is_the_side_of_the_area_between_neighboring_rays(name: str) -> None:
    """Of their solid angle; for lenses with a plane of projection of what they span in that plane."""
    camera = CAMERAS[name]
    x, y = (t.double() for t in grid(camera, 13))
    c2w, intrinsics = torch.eye(4).double()[None, :3], intrinsics_of(camera).double()
    lens = Lens(lens_of(camera).model, lens_of(camera).coefficients.double())
    h = 1e-3

    def directions(dx: float, dy: float) -> Tensor:
        found = lens_rays(c2w, intrinsics, lens, x + dx, y + dy).directions
        return found / -found[:, 2:] if camera.model in (PINHOLE, OPENCV) else found

    across, along = (directions(h, 0) - directions(-h, 0)) / (2 * h), (directions(0, h) - directions(0, -h)) / (2 * h)
    area = torch.linalg.cross(across, along).norm(dim=-1)
    distance = directions(0, 0).norm(dim=-1)
    footprint = lens_rays(c2w, intrinsics, lens, x, y).footprint
    torch.testing.assert_close(footprint, area.sqrt() / distance, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["fox", "rational", "wide fisheye", "panorama"])
def test_rays_are_differentiable_in_pose_intrinsics_and_lens(name: str) -> None:
    camera = CAMERAS[name]
    x, y = torch.tensor([3.0, 400.0, 900.5]).double(), torch.tensor([5.0, 610.0, 1.0]).double()
    x[1], y[1] = camera.intrinsics[2] - 0.5, camera.intrinsics[3] - 0.5  # on the axis, where a radius has no derivative
    model = torch.tensor([camera.model])
    c2w = torch.cat([torch.linalg.qr(rand(3, 3, seed=1))[0], rand(3, 1, seed=2)], -1)[None].double()

    def rays(c2w: Tensor, intrinsics: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        found = lens_rays(c2w, intrinsics, Lens(model, coefficients), x, y)
        return found.directions, found.footprint * 1000

    inputs = [c2w, intrinsics_of(camera).double(), lens_of(camera).coefficients.double()]
    learned = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(rays, learned, eps=1e-6, atol=1e-6)
    assert torch.autograd.gradgradcheck(rays, learned, eps=1e-6, atol=1e-5)


def test_directions_behind_a_lens_with_a_plane_have_no_pixel() -> None:
    behind = torch.tensor([[0.1, 0.2, 1.0]])
    for name in ("pinhole", "fox"):
        column, row = project(intrinsics_of(CAMERAS[name]), lens_of(CAMERAS[name]), behind)
        assert bool(column.isnan())
        assert bool(row.isnan())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e12, 3e38])
def test_no_coefficient_makes_a_direction_that_is_not_finite(scale: float) -> None:
    n = 5000
    model = (rand(n, seed=1) * 4).long()
    coefficients = rand(n, 8, seed=2, low=-1) * scale
    intrinsics = torch.cat([10 ** rand(n, 2, seed=3, low=-2, high=6), rand(n, 2, seed=4, low=-5e3, high=5e3)], 1)
    x, y = rand(n, seed=5, high=1e4), rand(n, seed=6, high=1e4)
    c2w, lens = torch.eye(4)[:3].expand(n, 3, 4), Lens(model, coefficients)
    rays = lens_rays(c2w, intrinsics, lens, x, y)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(n))
    assert bool(rays.footprint.isfinite().all())
    expected = reference(c2w, intrinsics, *lens, radius_limit(lens), x, y)
    assert torch.equal(rays.valid, expected[2])
    torch.testing.assert_close(rays.directions, expected[0], **TOLERANCE)
