from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_nerf.data.cameras import look_at
from lightning_nerf.data.views import Views, draw_rays, image_rays, pixel_rays, truth
from lightning_nerf.ops.random import make_key
from lightning_nerf.types import RayBatch
from tests.ops.harness import DEVICES, generator, rand

NEAR, FAR = 0.5, 7.0


def numbered_views(v: int = 3, h: int = 4, w: int = 5, *, alpha: bool = True, masked: Tensor | None = None) -> Views:
    """Pixel i of V * H * W has colour (i, 2 i, 255 - i) / 255 and alpha i / 255: every pixel is known by its colour."""
    i = torch.arange(v * h * w, dtype=torch.uint8).view(v, h, w)
    images = torch.stack([i, 2 * i, 255 - i, i][: 4 if alpha else 3], -1)
    c2w = look_at(rand(v, 3, seed=1, low=-1) * torch.tensor([3.0, 3.0, 1.0]))
    intrinsics = torch.tensor([6.0, 7.0, w / 2, h / 2]) + rand(v, 4, seed=2)
    pixels = None if masked is None else (~masked).view(-1).nonzero()[:, 0]
    return Views(images.contiguous(), c2w, intrinsics, torch.linspace(0, 1, v), pixels)


def drawn_pixels(batch: RayBatch) -> Tensor:
    return (batch.rgb[:, 0] * 255).round().long()


def test_rays_follow_the_convention() -> None:
    """At the origin, unrotated: along -z in the middle, x to the right, y up in the rows above the middle."""
    views = Views(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.eye(4)[None, :3], torch.tensor([[2.0, 2.0, 2.0, 2.0]]))
    rays = pixel_rays(views, torch.zeros(2, dtype=torch.long), torch.tensor([1.5, 3.0]), torch.tensor([1.5, 0.0]), 1.0, 2.0)
    torch.testing.assert_close(rays.directions[0], torch.tensor([0.0, 0.0, -1.0]))
    torch.testing.assert_close(rays.directions[1], torch.tensor([0.75, 0.75, -1.0]) / math.sqrt(1 + 2 * 0.75**2))
    assert rays.near.tolist() == [1.0, 1.0]
    assert rays.far.tolist() == [2.0, 2.0]


def test_rays_invert_projection() -> None:
    """A point on a ray, projected by the pinhole equations, lands on the pixel's centre."""
    views = numbered_views()
    n = 200
    image_index = torch.randint(3, (n,), generator=generator(0))
    x, y = (torch.randint(size, (n,), generator=generator(i)) for i, size in enumerate((5, 4)))
    rays = pixel_rays(views, image_index, x, y, NEAR, FAR)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(n))
    points = rays.origins + rand(n, seed=5, low=0.5, high=9.0)[:, None] * rays.directions
    c2w = views.c2w[image_index]
    camera = (c2w[:, :, :3].transpose(1, 2) @ (points - c2w[:, :, 3])[:, :, None])[:, :, 0]
    fx, fy, cx, cy = views.intrinsics[image_index].unbind(-1)
    assert bool((camera[:, 2] < 0).all())
    # A dozen float32 operations on coordinates of size 10.
    torch.testing.assert_close(cx - fx * camera[:, 0] / camera[:, 2], x + 0.5, rtol=0, atol=2e-5)
    torch.testing.assert_close(cy + fy * camera[:, 1] / camera[:, 2], y + 0.5, rtol=0, atol=2e-5)
    assert views.times is not None
    torch.testing.assert_close(rays.times, views.times[image_index])


def test_rays_of_an_image_go_row_by_row() -> None:
    views = numbered_views()
    rays = image_rays(views, 1, NEAR, FAR)
    one = pixel_rays(views, torch.tensor([1]), torch.tensor([3]), torch.tensor([2]), NEAR, FAR)
    for whole, single in zip(rays, one, strict=True):
        assert whole is not None
        assert len(whole) == 20
        torch.testing.assert_close(whole[2 * 5 + 3], single[0])  # type: ignore[index]
    for index in (-1, 3):
        with pytest.raises(IndexError, match=r"index: expected a view in 0 \.\.\. 2, got"):
            image_rays(views, index, NEAR, FAR)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("times", [True, False])
def test_a_draw_gives_the_pixels_ray_and_colour(device: str, alpha: bool, times: bool) -> None:
    views = numbered_views(alpha=alpha)
    views = views if times else views._replace(times=None)
    batch = draw_rays(views.to(device), make_key(3, device=device), 1000, near=NEAR, far=FAR)
    on_cpu = draw_rays(views, make_key(3), 1000, near=NEAR, far=FAR)
    pixel = drawn_pixels(on_cpu)
    image, rest = pixel // 20, pixel % 20
    rays = pixel_rays(views, image, rest % 5, rest // 5, NEAR, FAR)
    for actual, expected in zip(batch.rays, rays, strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            torch.testing.assert_close(actual.cpu(), expected)
    torch.testing.assert_close(batch.image_index.cpu(), image)
    torch.testing.assert_close(batch.rgb.cpu(), views.images.view(60, -1)[pixel, :3] / 255)
    assert (batch.alpha is not None) == alpha
    if batch.alpha is not None:
        torch.testing.assert_close(batch.alpha.cpu(), pixel / 255)
    assert batch.mask is None


def test_pixels_are_drawn_uniformly_and_all() -> None:
    counts = torch.bincount(drawn_pixels(draw_rays(numbered_views(), make_key(0), 60_000, near=0, far=1)), minlength=60)
    chi2 = float(((counts - 1000) ** 2 / 1000).sum())
    assert chi2 < 59 + 5 * math.sqrt(2 * 59)  # mean and five standard deviations of chi^2 with 59 degrees of freedom


def test_masked_pixels_are_never_drawn_and_all_others_are() -> None:
    masked = rand(3, 4, 5, seed=8) < 0.4
    masked[1] = True  # a whole view
    pixel = drawn_pixels(draw_rays(numbered_views(masked=masked), make_key(1), 20_000, near=0, far=1))
    assert set(pixel.tolist()) == set((~masked).view(-1).nonzero()[:, 0].tolist())


def test_a_draw_is_a_function_of_the_key() -> None:
    views = numbered_views()

    def draw(capacity: int, **key: int) -> RayBatch:
        return draw_rays(views, make_key(**{"seed": 1, **key}), capacity, near=0, far=1)

    torch.testing.assert_close(draw(500), draw(500), rtol=0, atol=0)
    torch.testing.assert_close(draw(200).rays.directions, draw(500).rays.directions[:200], rtol=0, atol=0)
    for other in ({"step": 1}, {"rank": 1}, {"seed": 2}):
        assert (drawn_pixels(draw(500, **other)) == drawn_pixels(draw(500))).float().mean() < 0.1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_rays", [0, 1, 63, 64, 1000])
def test_rays_past_the_number_wanted_are_inactive(device: str, n_rays: int) -> None:
    views, key = numbered_views().to(device), make_key(0, device=device)
    batch = draw_rays(views, key, 64, torch.tensor(n_rays, device=device), near=NEAR, far=FAR)
    active = torch.arange(64, device=device) < n_rays
    assert batch.mask is not None
    assert torch.equal(batch.mask, active)
    assert torch.equal(batch.rays.near, active * NEAR)
    assert torch.equal(batch.rays.far, active * FAR)
    assert all(bool(value.isfinite().all()) for value in batch.rays if value is not None)
    whole = draw_rays(views, key, 64, near=NEAR, far=FAR)
    torch.testing.assert_close(batch.rays.directions, whole.rays.directions, rtol=0, atol=0)


@pytest.mark.gpu
def test_a_draw_synchronises_nothing() -> None:
    masked = rand(3, 4, 5, seed=8) < 0.4
    views, key, n_rays = (
        numbered_views(masked=masked).to("cuda"),
        make_key(0, device="cuda"),
        torch.tensor(5, device="cuda"),
    )
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        draw_rays(views, key, 64, n_rays, near=NEAR, far=FAR)
        with torch.cuda.graph(graph):
            batch = draw_rays(views, key, 64, n_rays, near=NEAR, far=FAR)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    key[2] = 9
    n_rays.fill_(7)
    graph.replay()
    torch.testing.assert_close(batch, draw_rays(views, key, 64, n_rays, near=NEAR, far=FAR), rtol=0, atol=0)


def test_bad_arguments_are_named() -> None:
    views = numbered_views()
    with pytest.raises(ValueError, match=r"images: expected a tensor on cpu \(where key is\), got meta"):
        draw_rays(views.to("meta"), make_key(0), 4, near=0, far=1)
    with pytest.raises(ValueError, match="near, far: expected finite numbers, got 0, inf"):
        draw_rays(views, make_key(0), 4, near=0, far=math.inf)


def test_truth_composites_on_the_background() -> None:
    batch = draw_rays(numbered_views(), make_key(0), 300, near=0, far=1)
    assert batch.alpha is not None
    background = rand(300, 3, seed=0)
    expected = batch.alpha[:, None] * batch.rgb + (1 - batch.alpha[:, None]) * background
    torch.testing.assert_close(truth(batch, background), expected)
    empty = batch.alpha == 0
    assert bool(empty.any())
    assert torch.equal(truth(batch, background)[empty], background[empty])
    white = truth(batch, torch.ones(3))
    assert bool((white[empty] == 1).all())
    opaque = batch._replace(alpha=None)
    assert torch.equal(truth(opaque, background), batch.rgb)
