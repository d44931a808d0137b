from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.camera_rays import camera_rays, pixel_footprint
from lightning_nerf.ops.draw_rays import Pixels, draw_index, draw_rays, reference
from lightning_nerf.ops.lenses import EQUIRECTANGULAR, FISHEYE, OPENCV, PINHOLE, Lens
from lightning_nerf.ops.random import STREAM_RAYS, make_key, random_uniform
from lightning_nerf.types import RayBatch
from tests.ops.harness import DEVICES, assert_detected, check_op, rand, to

# Camera coordinates come from the same operations in the same order; then some ten float32 roundings of numbers up to 1.5,
# one of which a color shares, where the reference multiplies by 1 / 255. Lenses are computed in float64 and rounded once.
TOLERANCE = {"rtol": 5e-7, "atol": 1e-6}
ONE_SIZE = ((11, 7),) * 5
MIXED = ((11, 7), (3, 5), (1, 1), (0, 4), (2, 9), (6, 6))  # one view has no pixels
LENSES = {"lenses", "lenses of mixed sizes"}  # the cases whose views have all kinds of lenses
# name -> channels, times, share of drawable pixels (None: no list), n_rays, capacity, sizes (width, height)
CASES: dict[str, tuple[int, bool, float | None, int | None, int, tuple[tuple[int, int], ...]]] = {
    "no rays": (3, True, None, 3, 0, ONE_SIZE),
    "no views and no rays": (3, True, None, None, 0, ()),
    "one ray": (3, False, None, None, 1, ONE_SIZE),
    "all pixels": (3, True, None, None, 1000, ONE_SIZE),
    "alpha": (4, False, None, None, 257, ONE_SIZE),
    "drawable pixels": (4, True, 0.3, None, 1000, ONE_SIZE),
    "some active": (4, True, 0.3, 63, 128, ONE_SIZE),
    "none active": (3, False, None, 0, 64, ONE_SIZE),
    "more wanted than there is room": (3, False, None, 2**31 - 1, 64, ONE_SIZE),
    "one view": (3, False, None, None, 100, ((4, 3),)),
    "mixed sizes": (4, True, None, None, 1000, MIXED),
    "drawable pixels of mixed sizes": (3, False, 0.3, 900, 1000, MIXED),
    "lenses": (4, True, 0.3, 63, 128, ONE_SIZE),
    "lenses of mixed sizes": (3, True, None, None, 1000, MIXED),
}
MODELS = (OPENCV, FISHEYE, OPENCV, EQUIRECTANGULAR, FISHEYE, PINHOLE)
COEFFICIENTS = (
    (-0.2, 0.05, 0.002, -0.003, 0.01, 0.02, -0.01, 0.03),
    (0.05, 0.02, -0.01, 0.002, 0, 0, 0, 0),
    (0.0578421, -0.0805099, -0.000980296, 0.00015575, 0, 0, 0, 0),  # of instant-ngp's fox
    (0,) * 8,
    (-0.05, 0.003, 0, 0, 0, 0, 0, 0),
    (0,) * 8,
)
# Positions in the op's arguments.
COLORS, OFFSETS, DRAWABLE, C2W, INTRINSICS, SIZE, BOUNDS, TIMES, LENS_MODEL, LENS, KEY, N_RAYS, CAPACITY = range(13)


def arguments(name: str) -> tuple[Any, ...]:
    channels, times, share, n_rays, capacity, sizes = CASES[name]
    return (
        *some_pixels(sizes, channels, times, share, name in LENSES),
        make_key(2**35 + 3, rank=1, step=17),
        None if n_rays is None else torch.tensor(n_rays, dtype=torch.int32),
        capacity,
    )


def some_pixels(
    sizes: Sequence[tuple[int, int]],
    channels: int = 3,
    times: bool = False,
    share: float | None = None,
    lenses: bool = False,
) -> Pixels:
    v, size = len(sizes), torch.tensor(sizes, dtype=torch.int64).view(-1, 2)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), size.prod(1).cumsum(0)])
    n = int(offsets[-1])
    c2w = torch.cat([torch.linalg.qr(rand(v, 3, 3, seed=1, low=-1))[0], rand(v, 3, 1, seed=2, low=-4, high=4)], -1)
    intrinsics = torch.cat([torch.tensor([9.0, 8.0]).expand(v, 2), size / 2], -1) + rand(v, 4, seed=3)
    bounds = torch.stack([rand(v, seed=6), rand(v, seed=7, low=4, high=8)], -1)
    drawable = None if share is None else (rand(n, seed=4) < share).nonzero()[:, 0]
    colors = (rand(n, channels, seed=0) * 256).byte()
    pixels = Pixels(colors, offsets, drawable, c2w, intrinsics, size, bounds, rand(v, seed=5) if times else None)
    if not lenses:
        return pixels
    return pixels._replace(lens_model=torch.tensor(MODELS[:v]), lens=torch.tensor(COEFFICIENTS[:v]))


def public(*args: Any) -> RayBatch:
    return draw_rays(Pixels(*args[:KEY]), args[KEY], args[CAPACITY], args[N_RAYS])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_kernel_matches_the_reference(device: str, name: str) -> None:
    check_op("draw_rays", reference, arguments(name), device=device, **TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_kernels_give_the_same_bits_on_every_device(name: str) -> None:
    args = arguments(name)
    cuda = torch.ops.lightning_nerf.draw_rays(*to("cuda", args))
    for ours, theirs in zip(torch.ops.lightning_nerf.draw_rays(*args), cuda, strict=True):
        assert torch.equal(ours, theirs.cpu())


@pytest.mark.parametrize("name", CASES)
def test_batches_hold_what_was_asked_for(name: str) -> None:
    channels, times, _, n_rays, capacity, _ = CASES[name]
    batch = public(*arguments(name))
    assert (batch.alpha is None) == (channels == 3)
    assert (batch.rays.times is None) == (not times)
    assert (batch.mask is None) == (n_rays is None)
    present = [value for value in (*batch.rays, *batch[1:]) if value is not None]
    assert all(len(value) == capacity and value.is_contiguous() for value in present)
    if n_rays is not None:
        args = list(arguments(name))
        args[N_RAYS] = args[N_RAYS].long()
        torch.testing.assert_close(public(*args), batch, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_draws_reach_every_pixel_of_more_than_24_bits(device: str) -> None:
    """64 million pixels, recovered from the directions. A single float32 would leave the two lowest bits 0."""
    side, n = 2**13, 80_000
    pixels = Pixels(
        torch.empty(side * side, 3, dtype=torch.uint8),  # colors don't matter
        torch.tensor([0, side * side]),
        None,
        torch.eye(4)[None, :3],
        torch.tensor([[1.0, 1.0, 0.0, 0.0]]),
        torch.tensor([[side, side]]),
        torch.tensor([[0.0, 1.0]]),
        None,
    )
    directions = draw_rays(Pixels(*to(device, pixels)), make_key(2, device=device), n).rays.directions.double()
    x, y = -directions[:, 0] / directions[:, 2], directions[:, 1] / directions[:, 2]  # error 8192 * 4e-7
    index = (y.floor() * side + x.floor()).long()

    high, low = (random_uniform(make_key(2, device=device), STREAM_RAYS, n, 2) * 2**24).long().unbind(-1)
    assert torch.equal(index, high * 4 + (low >> 22))  # the first 26 of 48 bits
    counts = torch.bincount(index % 8, minlength=8)
    assert float(((counts - n / 8) ** 2 / (n / 8)).sum()) < 7 + 5 * math.sqrt(14)


@pytest.mark.parametrize("size", [1, 2, 3, 10**6 + 3, 2**26, 3 * 2**27])
def test_the_largest_random_number_stays_inside(size: int) -> None:
    largest = torch.tensor(1 - 2.0**-24).double()
    assert int(torch.add(largest, largest, alpha=2.0**-24).mul_(size).long()) == size - 1


@pytest.mark.parametrize("name", ["mixed sizes", "drawable pixels of mixed sizes", "lenses of mixed sizes"])
def test_each_pixel_of_pictures_of_any_size_has_its_own_camera_and_color(name: str) -> None:
    """One loop over views, rows and columns makes a table of all pixels; draws are looked up in it."""
    args = arguments(name)
    (colors, _, drawable, c2w, intrinsics, size, bounds, times, model, coefficients) = args[:KEY]
    key, n_rays, capacity = args[KEY:]
    view, x, y = list[int](), list[int](), list[int]()
    for v, (width, height) in enumerate(size.tolist()):
        for row in range(height):
            for column in range(width):
                view.append(v), x.append(column), y.append(row)
    camera, columns, rows = torch.tensor(view), torch.tensor(x), torch.tensor(y)
    pixel = draw_index(key, capacity, len(colors) if drawable is None else len(drawable))
    pixel = pixel if drawable is None else drawable[pixel]
    lens = None if model is None else Lens(model[camera], coefficients[camera])
    origins, directions = camera_rays(c2w[camera], intrinsics[camera], columns, rows, lens)
    active = torch.ones(capacity, dtype=torch.bool) if n_rays is None else torch.arange(capacity) < n_rays

    batch = public(*arguments(name))
    assert torch.equal(batch.rays.cameras, camera[pixel])
    torch.testing.assert_close(batch.rays.origins, origins[pixel], rtol=0, atol=0)
    torch.testing.assert_close(batch.rays.directions, directions[pixel], **TOLERANCE)
    footprint = pixel_footprint(intrinsics[camera], columns, rows, lens)
    torch.testing.assert_close(batch.rays.footprint, footprint[pixel], **TOLERANCE)
    torch.testing.assert_close(batch.rgb, colors[pixel, :3] / 255 * active[:, None], **TOLERANCE)
    assert torch.equal(batch.rays.near, bounds[camera[pixel], 0] * active)
    assert torch.equal(batch.rays.far, bounds[camera[pixel], 1] * active)
    if times is not None:
        assert torch.equal(batch.rays.times, times[camera[pixel]])
    drawable_views = camera if drawable is None else camera[drawable]
    assert set(batch.rays.cameras.tolist()) == set(drawable_views.tolist())


@pytest.mark.parametrize("device", DEVICES)
def test_pixels_of_three_sizes_are_drawn_uniformly(device: str) -> None:
    """A view of more pixels is drawn more often: each of 77 + 15 + 4 pixels has the same share."""
    sizes, n = ((11, 7), (3, 5), (1, 4)), 96_000
    pixels = some_pixels(sizes)
    i = torch.arange(96, dtype=torch.uint8)
    pixels = Pixels(*to(device, pixels._replace(colors=torch.stack([i, i, i], -1))))
    batch = draw_rays(pixels, make_key(0, device=device), n)
    pixel = (batch.rgb[:, 0] * 255).round().long().cpu()
    counts = torch.bincount(pixel, minlength=96)
    assert len(counts) == 96
    chi2 = float(((counts - 1000) ** 2 / 1000).sum())
    assert chi2 < 95 + 5 * math.sqrt(2 * 95)  # mean and five standard deviations of chi^2 with 95 degrees of freedom
    assert torch.equal(
        batch.rays.cameras.cpu(), torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor([77, 15, 4]))[pixel]
    )


def test_a_footprint_is_the_distance_of_neighboring_rays_where_they_cross_a_plane_parallel_to_the_picture() -> None:
    """At distance t along the ray: the side of a square as large as what the steps to two neighbors span there."""
    n = 500
    c2w = torch.linalg.qr(rand(n, 3, 3, seed=1, low=-1).double())[0]
    c2w = torch.cat([c2w, rand(n, 3, 1, seed=2, low=-4, high=4)], -1)
    intrinsics = torch.cat([rand(n, 2, seed=3, low=2, high=9), rand(n, 2, seed=4, low=-5, high=9)], -1).double()
    intrinsics[:, 0] *= torch.where(rand(n, seed=8) < 0.5, -1, 1)  # mirrored pictures have a negative focal length
    x, y = (rand(n, seed=s, high=20).floor().double() for s in (5, 6))
    t = rand(n, 1, seed=7, low=0.1, high=9).double()
    origins, directions = camera_rays(c2w, intrinsics, x, y)
    depth = (t * directions * c2w[:, :, 2]).sum(-1, keepdim=True)

    def crossing(x: Tensor, y: Tensor) -> Tensor:
        """Where the ray of another pixel has the depth that this one's has at t."""
        other = camera_rays(c2w, intrinsics, x, y)[1]
        return origins + depth / (other * c2w[:, :, 2]).sum(-1, keepdim=True) * other

    here = crossing(x, y)
    torch.testing.assert_close(here, origins + t * directions)
    area = torch.linalg.cross(crossing(x + 1, y) - here, crossing(x, y + 1) - here).norm(dim=-1)
    torch.testing.assert_close(t[:, 0] * pixel_footprint(intrinsics, x, y), area.sqrt())


CHANGES = {
    "image y points up": (C2W, torch.tensor([1.0, -1.0, 1.0, 1.0])),
    "views have the size of the first": (SIZE, torch.tensor([[11, 7]])),
    "bounds of the wrong view": (BOUNDS, None),
    "one ray more is active": (N_RAYS, torch.tensor(64, dtype=torch.int32)),
    "lenses of the wrong view": (LENS, None),
    "a coefficient is lost": (LENS, torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 0])),
    "a fisheye is taken for a pinhole": (LENS_MODEL, torch.tensor([1, 0, 1, 3, 0, 0])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_comparison_detects(change: str) -> None:
    def mutated(*args: Any) -> tuple[Tensor, ...]:
        changed, (position, value) = list(args), CHANGES[change]
        if value is None:
            changed[position] = changed[position].roll(1, 0)
        elif position in (C2W, LENS):
            changed[position] = changed[position] * value
        else:
            changed[position] = value.expand_as(changed[position])
        return reference(*changed)

    args = list(arguments("lenses of mixed sizes"))
    args[N_RAYS] = torch.tensor(63, dtype=torch.int32)
    check = {"device": "cpu", "opcheck": False, **TOLERANCE}
    check_op("draw_rays", reference, args, **check)
    assert_detected(lambda: check_op("draw_rays", mutated, args, **check))


@pytest.mark.parametrize("name", ["drawable pixels", "mixed sizes", "lenses of mixed sizes"])
def test_the_reference_passes_gradcheck(name: str) -> None:
    args = list(arguments(name))
    args[CAPACITY] = 6
    places = (C2W, INTRINSICS, *(() if args[TIMES] is None else (TIMES,)), *(() if args[LENS] is None else (LENS,)))

    def function(*differentiable: Tensor) -> tuple[Tensor, ...]:
        changed = list(args)
        for place, value in zip(places, differentiable, strict=True):
            changed[place] = value
        origins, directions, _, _, times, footprint, *_ = reference(*changed)
        return origins, directions, times, footprint

    assert torch.autograd.gradcheck(function, [args[i].double().requires_grad_() for i in places])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["all pixels", "mixed sizes", "lenses of mixed sizes"])
def test_cameras_that_require_a_gradient_get_it(device: str, name: str) -> None:
    args = list(to(device, arguments(name)))
    expected = public(*args)
    args[C2W] = args[C2W].clone().requires_grad_()
    batch = public(*args)
    torch.testing.assert_close(batch.rays.directions, expected.rays.directions, **TOLERANCE)
    torch.testing.assert_close(batch.rays.footprint, expected.rays.footprint, **TOLERANCE)
    by_reference = args[C2W].detach().clone().requires_grad_()
    weights = rand(*batch.rays.directions.shape, seed=9).to(device)
    (reference(*args[:C2W], by_reference, *args[C2W + 1 :])[1] * weights).sum().backward()
    (grad,) = torch.autograd.grad((batch.rays.directions * weights).sum(), args[C2W], retain_graph=True)
    torch.testing.assert_close(grad, by_reference.grad, rtol=1e-5, atol=1e-4)  # sums of 200 terms
    batch.rays.origins.sum().backward()
    drawn = torch.bincount(batch.rays.cameras, minlength=len(args[C2W])).float()
    assert torch.equal(args[C2W].grad[:, :, 3], drawn[:, None].expand(-1, 3))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("place", [INTRINSICS, TIMES, LENS])
def test_every_learned_part_of_a_camera_gets_a_gradient(device: str, place: int) -> None:
    args = list(to(device, arguments("lenses of mixed sizes" if place == LENS else "mixed sizes")))
    args[place] = args[place].clone().requires_grad_()
    batch = public(*args)
    sum(value.sum() for value in (batch.rays.directions, batch.rays.footprint, batch.rays.times)).backward()
    assert bool((args[place].grad[:3] != 0).any())


def test_bad_arguments_are_named() -> None:
    names = [*Pixels._fields, "key", "n_rays", "capacity"]
    args = dict(zip(names, arguments("lenses"), strict=True))
    for name, value, message in [
        ("colors", args["colors"].float(), "colors: expected dtype torch.uint8, got torch.float32"),
        ("colors", args["colors"].view(5, -1, 4), r"colors: expected shape \[P, C\], got \[5, 77, 4\]"),
        ("colors", args["colors"][:, :2], "colors: expected 3 or 4 channels, got 2"),
        ("colors", args["colors"][:, :3], "colors: expected a contiguous tensor, got strides"),
        ("offsets", args["offsets"][1:], r"offsets: expected shape \[6\], got \[5\]"),
        ("offsets", args["offsets"].int(), "offsets: expected dtype torch.int64, got torch.int32"),
        ("c2w", args["c2w"][:2], r"offsets: expected shape \[3\], got \[6\]"),
        ("c2w", args["c2w"][:, :2], r"c2w: expected shape \[V, 3, 4\], got \[5, 2, 4\]"),
        ("intrinsics", args["intrinsics"].to("meta"), r"intrinsics: expected a tensor on cpu \(where key is\), got meta"),
        ("size", args["size"][:4], r"size: expected shape \[5, 2\], got \[4, 2\]"),
        ("size", args["size"].int(), "size: expected dtype torch.int64, got torch.int32"),
        ("bounds", args["bounds"][0], r"bounds: expected shape \[5, 2\], got \[2\]"),
        ("bounds", None, "bounds: expected a tensor, got NoneType"),
        ("times", torch.zeros(3), r"times: expected shape \[5\], got \[3\]"),
        ("lens", None, "lens_model, lens: expected both or none"),
        ("lens", torch.zeros(6, 4), r"lens: expected shape \[5, 8\], got \[6, 4\]"),
        ("lens", torch.zeros(5, 8).double(), "lens: expected dtype torch.float32, got torch.float64"),
        ("lens_model", torch.zeros(5), "lens_model: expected dtype torch.int64, got torch.float32"),
        ("drawable", torch.zeros(3).int(), "drawable: expected dtype torch.int64, got torch.int32"),
        ("drawable", torch.zeros(0).long(), "colors, drawable: expected at least one pixel to draw, got none"),
        ("colors", args["colors"][:0], "colors, drawable: expected at least one pixel to draw, got none"),
        ("key", torch.zeros(2).long(), r"key: expected shape \[3\], got \[2\]"),
        ("n_rays", torch.zeros(1).int(), r"n_rays: expected shape \[\], got \[1\]"),
        ("capacity", -1, r"capacity: expected 0 <= capacity < 2\*\*31, got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            public(*{**args, name: value}.values())
