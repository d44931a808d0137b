from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.cameras import Cameras, image_rays, pixel_rays
from lightning_nerf.cameras.cameras import checked_cameras
from lightning_nerf.ops.draw_rays import draw_rays
from lightning_nerf.ops.random import make_key
from lightning_nerf.types import RayBatch, Rays
from tests.data.numbered import FAR, MIXED, NEAR, ONE_SIZE, drawn_pixels, numbered_scene
from tests.ops.harness import DEVICES, generator, rand

SIZES = pytest.mark.parametrize("sizes", [ONE_SIZE, MIXED], ids=["one size", "mixed sizes"])


def places(sizes: Sequence[tuple[int, int]], pixel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """View, column and row of each pixel, from a list of all."""
    table = torch.tensor([(v, x, y) for v, (w, h) in enumerate(sizes) for y in range(h) for x in range(w)])
    view, x, y = table[pixel].unbind(-1)
    return view, x, y


def assert_same_rays(actual: Rays, expected: Rays) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert (a is None) == (e is None)
        if a is not None and e is not None:
            torch.testing.assert_close(a.cpu(), e)


def test_rays_follow_the_convention() -> None:
    """At the origin, unrotated: along -z in the middle, x to the right, y up in the rows above the middle."""
    cameras = Cameras.of_one_size(torch.eye(4)[None, :3], torch.tensor([2.0, 2.0, 2.0, 2.0]), 4, 4, near=1.0, far=2.0)
    rays = pixel_rays(cameras, torch.zeros(2, dtype=torch.long), torch.tensor([1.5, 3.0]), torch.tensor([1.5, 0.0]))
    torch.testing.assert_close(rays.directions[0], torch.tensor([0.0, 0.0, -1.0]))
    torch.testing.assert_close(rays.directions[1], torch.tensor([0.75, 0.75, -1.0]) / math.sqrt(1 + 2 * 0.75**2))
    assert rays.near.tolist() == [1.0, 1.0]
    assert rays.far.tolist() == [2.0, 2.0]
    assert rays.footprint is not None
    # Half a unit of the plane at depth 1, which the second ray reaches after sqrt(1 + 2 * 0.75^2).
    torch.testing.assert_close(rays.footprint, torch.tensor([0.5, 0.5 / math.sqrt(1 + 2 * 0.75**2)]))


@SIZES
def test_rays_invert_projection(sizes: Sequence[tuple[int, int]]) -> None:
    """A point on a ray, projected by the pinhole equations, lands on the pixel's center."""
    cameras, n = numbered_scene(sizes).cameras, 200
    index, x, y = places(sizes, torch.randint(sum(w * h for w, h in sizes), (n,), generator=generator(0)))
    rays = pixel_rays(cameras, index, x, y)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(n))
    points = rays.origins + rand(n, seed=5, low=0.5, high=9.0)[:, None] * rays.directions
    c2w = cameras.c2w[index]
    camera = (c2w[:, :, :3].transpose(1, 2) @ (points - c2w[:, :, 3])[:, :, None])[:, :, 0]
    fx, fy, cx, cy = cameras.intrinsics[index].unbind(-1)
    assert bool((camera[:, 2] < 0).all())
    # A dozen float32 operations on coordinates of size 10.
    torch.testing.assert_close(cx - fx * camera[:, 0] / camera[:, 2], x + 0.5, rtol=0, atol=2e-5)
    torch.testing.assert_close(cy + fy * camera[:, 1] / camera[:, 2], y + 0.5, rtol=0, atol=2e-5)
    assert cameras.times is not None
    torch.testing.assert_close(rays.times, cameras.times[index])
    assert rays.cameras is not None
    assert torch.equal(rays.cameras, index)


@SIZES
def test_rays_of_an_image_go_row_by_row(sizes: Sequence[tuple[int, int]]) -> None:
    cameras = numbered_scene(sizes).cameras
    for index, (width, height) in enumerate(sizes):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        n = width * height
        expected = pixel_rays(cameras, torch.full((n,), index), x.reshape(-1), y.reshape(-1))
        whole = image_rays(cameras, index)
        assert_same_rays(whole._replace(cameras=expected.cameras), expected)
        assert whole.cameras is not None
        assert whole.cameras.tolist() == [-1] * n  # it may be a camera of any set
        assert_same_rays(image_rays(cameras, index, shape=(height, width)), whole)
        assert_same_rays(image_rays(cameras, index, 2, 5), whole.map(lambda t: t[2:5]))
    for wrong in (-1, 3):
        with pytest.raises(IndexError, match=r"index: expected a view in 0 \.\.\. 2, got"):
            image_rays(cameras, wrong)
    with pytest.raises(ValueError, match="start, stop: expected 0 <= start <= stop <= 20 pixels, got 3, 21"):
        image_rays(cameras, 0, 3, 21)


def test_each_camera_has_bounds_of_its_own() -> None:
    scene = numbered_scene(MIXED)
    bounds = torch.tensor([[0.5, 7.0], [1.0, 2.0], [0.0, 9.0]])
    cameras = scene.cameras._replace(bounds=bounds)
    index = torch.tensor([2, 0, 1, 2])
    rays = pixel_rays(cameras, index, torch.zeros(4), torch.zeros(4))
    assert torch.equal(torch.stack([rays.near, rays.far], -1), bounds[index])
    for i in range(3):
        whole = image_rays(cameras, i)
        assert set(zip(whole.near.tolist(), whole.far.tolist(), strict=True)) == {tuple(bounds[i].tolist())}
    batch = draw_rays(scene._replace(cameras=cameras).pixels(), make_key(0), 300)
    assert batch.rays.cameras is not None
    assert torch.equal(torch.stack([batch.rays.near, batch.rays.far], -1), bounds[batch.rays.cameras])


def test_cameras_without_bounds_have_no_rays() -> None:
    scene = numbered_scene(bounded=False)
    for attempt in (
        lambda: image_rays(scene.cameras, 0),
        lambda: pixel_rays(scene.cameras, torch.zeros(1).long(), torch.zeros(1), torch.zeros(1)),
        scene.pixels,
    ):
        with pytest.raises(ValueError, match=r"cameras.bounds: expected near and far of every view.*Cameras.bounded"):
            attempt()
    assert scene.cameras.bounded(1.0, 2.0).bounds.tolist() == [[1.0, 2.0]] * 3  # type: ignore[union-attr]


def test_rays_are_differentiable_in_the_cameras() -> None:
    cameras = numbered_scene(MIXED).cameras
    index, x, y = places(MIXED, torch.tensor([3, 25, 40, 60]))

    def rays(c2w: Tensor, intrinsics: Tensor, times: Tensor) -> list[Tensor]:
        found = pixel_rays(cameras._replace(c2w=c2w, intrinsics=intrinsics, times=times), index, x, y)
        return [t for t in (found.origins, found.directions, found.times, found.footprint) if t is not None]

    learned = [t.double().requires_grad_() for t in (cameras.c2w, cameras.intrinsics, cameras.times) if t is not None]
    assert torch.autograd.gradcheck(rays, learned)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("times", [True, False])
@SIZES
def test_a_draw_gives_the_pixels_ray_and_color(
    device: str, alpha: bool, times: bool, sizes: Sequence[tuple[int, int]]
) -> None:
    scene = numbered_scene(sizes, alpha=alpha)
    scene = scene if times else scene._replace(cameras=scene.cameras._replace(times=None))
    batch = draw_rays(scene.to(device).pixels(), make_key(3, device=device), 1000)
    pixel = drawn_pixels(draw_rays(scene.pixels(), make_key(3), 1000))
    view, x, y = places(sizes, pixel)
    assert_same_rays(batch.rays, pixel_rays(scene.cameras, view, x, y))
    torch.testing.assert_close(batch.rgb.cpu(), scene.images.colors[pixel, :3] / 255)
    assert (batch.alpha is not None) == alpha
    if batch.alpha is not None:
        torch.testing.assert_close(batch.alpha.cpu(), pixel / 255)
    assert batch.mask is None


@SIZES
def test_pixels_are_drawn_uniformly_and_all(sizes: Sequence[tuple[int, int]]) -> None:
    n = sum(w * h for w, h in sizes)
    counts = torch.bincount(drawn_pixels(draw_rays(numbered_scene(sizes).pixels(), make_key(0), 1000 * n)), minlength=n)
    chi2 = float(((counts - 1000) ** 2 / 1000).sum())
    # Mean and five standard deviations of chi^2 with n - 1 degrees of freedom.
    assert chi2 < n - 1 + 5 * math.sqrt(2 * (n - 1))


@SIZES
def test_masked_pixels_are_never_drawn_and_all_others_are(sizes: Sequence[tuple[int, int]]) -> None:
    masked = rand(sum(w * h for w, h in sizes), seed=8) < 0.4
    masked[20 : 20 + sizes[1][0] * sizes[1][1]] = True  # a whole view
    pixel = drawn_pixels(draw_rays(numbered_scene(sizes, masked=masked).pixels(), make_key(1), 20_000))
    assert set(pixel.tolist()) == set((~masked).nonzero()[:, 0].tolist())


def test_a_draw_is_a_function_of_the_key() -> None:
    pixels = numbered_scene().pixels()

    def draw(capacity: int, **key: int) -> RayBatch:
        return draw_rays(pixels, make_key(**{"seed": 1, **key}), capacity)

    torch.testing.assert_close(draw(500), draw(500), rtol=0, atol=0)
    torch.testing.assert_close(draw(200).rays.directions, draw(500).rays.directions[:200], rtol=0, atol=0)
    for other in ({"step": 1}, {"rank": 1}, {"seed": 2}):
        assert (drawn_pixels(draw(500, **other)) == drawn_pixels(draw(500))).float().mean() < 0.1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_rays", [0, 1, 63, 64, 1000])
def test_rays_past_the_number_wanted_are_inactive(device: str, n_rays: int) -> None:
    pixels, key = numbered_scene().to(device).pixels(), make_key(0, device=device)
    batch = draw_rays(pixels, key, 64, torch.tensor(n_rays, device=device))
    active = torch.arange(64, device=device) < n_rays
    assert batch.mask is not None
    assert torch.equal(batch.mask, active)
    assert torch.equal(batch.rays.near, active * NEAR)
    assert torch.equal(batch.rays.far, active * FAR)
    assert all(bool(value.isfinite().all()) for value in batch.rays if value is not None)
    whole = draw_rays(pixels, key, 64)
    torch.testing.assert_close(batch.rays.directions, whole.rays.directions, rtol=0, atol=0)


@pytest.mark.gpu
def test_a_draw_synchronises_nothing() -> None:
    masked = rand(61, seed=8) < 0.4
    pixels = numbered_scene(MIXED, masked=masked).to("cuda").pixels()
    key, n_rays = make_key(0, device="cuda"), torch.tensor(5, device="cuda")
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        draw_rays(pixels, key, 64, n_rays)
        with torch.cuda.graph(graph):
            batch = draw_rays(pixels, key, 64, n_rays)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    key[2] = 9
    n_rays.fill_(7)
    graph.replay()
    torch.testing.assert_close(batch, draw_rays(pixels, key, 64, n_rays), rtol=0, atol=0)


def test_pixels_elsewhere_than_the_key_are_named() -> None:
    with pytest.raises(ValueError, match=r"colors: expected a tensor on cpu \(where key is\), got meta"):
        draw_rays(numbered_scene().to("meta").pixels(), make_key(0), 4)


def test_cameras_are_made_moved_and_chosen() -> None:
    c2w = numbered_scene().cameras.c2w
    cameras = Cameras.of_one_size(c2w, torch.tensor([2, 3, 4, 5]), 7, 6, near=1, far=2, times=torch.tensor([0.0, 0.5, 1.0]))
    assert cameras.n_views == 3
    assert cameras.shape(1) == (6, 7)
    assert cameras.size.tolist() == [[7, 6]] * 3
    assert cameras.intrinsics.tolist() == [[2.0, 3.0, 4.0, 5.0]] * 3
    checked_cameras("cameras", cameras)
    for index in ([2, 0], slice(1, 3)):
        some = cameras.chosen(index)
        assert torch.equal(some.c2w, c2w[index])
        assert some.times is not None
        assert cameras.times is not None
        assert torch.equal(some.times, cameras.times[index])
    assert all(t.device.type == "meta" for t in cameras.to("meta") if t is not None)
    each = Cameras.of_one_size(c2w, rand(3, 4, seed=0), 7, 6)
    assert torch.equal(each.intrinsics, rand(3, 4, seed=0))
    assert each.bounds is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c2w": torch.zeros(3, 4, 4)}, r"cameras.c2w: expected shape \[V, 3, 4\], got \[3, 4, 4\]"),
        ({"c2w": torch.zeros(3, 3, 4).double()}, "cameras.c2w: expected dtype torch.float32, got torch.float64"),
        ({"c2w": [[0.0]]}, "cameras.c2w: expected a tensor, got list"),
        ({"intrinsics": torch.zeros(4)}, r"cameras.intrinsics: expected shape \[3, 4\], got \[4\]"),
        ({"size": torch.zeros(3, 2)}, "cameras.size: expected dtype torch.int64, got torch.float32"),
        ({"size": torch.zeros(2, 2).long()}, r"cameras.size: expected shape \[3, 2\], got \[2, 2\]"),
        ({"bounds": torch.zeros(2)}, r"cameras.bounds: expected shape \[3, 2\], got \[2\]"),
        ({"times": torch.zeros(4)}, r"cameras.times: expected shape \[3\], got \[4\]"),
    ],
)
def test_cameras_that_are_none_are_named(change: dict[str, object], message: str) -> None:
    cameras = numbered_scene().cameras
    assert checked_cameras("cameras", cameras) is cameras
    with pytest.raises(ValueError, match=message):
        checked_cameras("cameras", cameras._replace(**change))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cameras: expected Cameras, got tuple"):
        checked_cameras("cameras", tuple(cameras))  # type: ignore[arg-type]


EYE, LENS = torch.eye(4)[None, :3], torch.tensor([2.0, 2, 2, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c2w": [[1.0]]}, "c2w: expected a tensor, got list"),
        ({"c2w": torch.eye(4)[None]}, r"c2w: expected shape \[V, 3, 4\], got \[1, 4, 4\]"),
        ({"c2w": EYE[0]}, r"c2w: expected shape \[V, 3, 4\], got \[3, 4\]"),
        ({"intrinsics": [2.0, 2, 2, 2]}, "intrinsics: expected a tensor, got list"),
        ({"intrinsics": torch.ones(3)}, r"intrinsics: expected shape \[4\], got \[3\]"),
        ({"intrinsics": torch.ones(3, 4)}, r"intrinsics: expected shape \[1, 4\], got \[3, 4\]"),
        ({"width": 4.5}, "width: expected an integer >= 1, got 4.5"),
        ({"height": 0}, "height: expected an integer >= 1, got 0"),
        ({"near": 1.0}, "near, far: expected both or none, got 1.0, None"),
        ({"near": 3.0, "far": 1.0}, "near, far: expected 0 <= near < far, got 3.0, 1.0"),
        ({"near": -1.0, "far": 1.0}, r"near: expected a number in \[0, inf\), got -1.0"),
        ({"near": float("nan"), "far": 1.0}, r"near: expected a number in \[0, inf\), got nan"),
        ({"times": torch.zeros(3)}, r"times: expected shape \[1\], got \[3\]"),
    ],
)
def test_cameras_are_not_made_of_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    proper: dict[str, Any] = {"c2w": EYE, "intrinsics": LENS, "width": 4, "height": 4}
    assert Cameras.of_one_size(**proper).n_views == 1
    with pytest.raises(ValueError, match=f"^{message}"):
        Cameras.of_one_size(**{**proper, **change})
