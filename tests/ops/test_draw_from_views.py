"""Rays of some views only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.draw_rays import Pixels, draw_rays
from lightning_nerf.ops.random import make_key
from tests.ops.harness import DEVICES, to
from tests.ops.test_draw_rays import MIXED, ONE_SIZE, some_pixels

SIZES = {"one size": ONE_SIZE, "mixed": MIXED}


def opened(*views: int, n: int) -> Tensor:
    return torch.isin(torch.arange(n), torch.tensor(views, dtype=torch.int64))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [None, 0.3])
@pytest.mark.parametrize("sizes", SIZES)
def test_with_all_views_open_it_is_the_draw_without_them(device: str, sizes: str, share: float | None) -> None:
    pixels = Pixels(*to(device, some_pixels(SIZES[sizes], 4, True, share)))
    key, n_rays = make_key(5, device=device), torch.tensor(800, device=device)
    every = torch.ones(len(pixels.c2w), dtype=torch.bool, device=device)
    here, expected = (draw_rays(pixels, key, 1000, n_rays, which) for which in (every, None))
    for name in ("near", "far", "times", "cameras"):
        assert torch.equal(getattr(here.rays, name), getattr(expected.rays, name)), name
    assert torch.equal(here.mask, expected.mask)  # type: ignore[arg-type]
    torch.testing.assert_close(here.rays.directions, expected.rays.directions, rtol=5e-7, atol=1e-6)
    torch.testing.assert_close(here.rgb, expected.rgb, rtol=5e-7, atol=1e-6)


@pytest.mark.parametrize("share", [None, 0.5])
def test_each_pixel_of_open_views_is_drawn_equally_often_and_no_other(share: float | None) -> None:
    """Colors number the pixels; the first open view lies behind a closed one, and one open view has no pixels."""
    pixels = some_pixels(MIXED, 3, True, share)
    n = len(pixels.colors)
    number = torch.arange(n, dtype=torch.uint8)
    pixels = pixels._replace(colors=torch.stack([number, number, number], -1))
    view = torch.arange(6).repeat_interleave(pixels.offsets.diff())
    listed = torch.arange(n) if pixels.drawable is None else pixels.drawable
    expected = listed[torch.isin(view[listed], torch.tensor([1, 3, 5]))]
    batch = draw_rays(pixels, make_key(0), 1000 * len(expected), open_views=opened(1, 3, 5, n=6))
    drawn = (batch.rgb[:, 0] * 255).round().long()
    counts = torch.bincount(drawn, minlength=n)
    assert counts.nonzero()[:, 0].tolist() == expected.tolist()
    freedom = len(expected) - 1
    chi2 = float(((counts[expected] - 1000) ** 2 / 1000).sum())
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5
    assert torch.equal(batch.rays.cameras, view[drawn])  # type: ignore[arg-type]
    assert bool(batch.mask.all())  # type: ignore[union-attr]


@pytest.mark.parametrize("views", [(), (3,)], ids=["none", "one without pixels"])
def test_without_open_pixels_no_ray_is_active(views: tuple[int, ...]) -> None:
    batch = draw_rays(some_pixels(MIXED[:4]), make_key(0), 50, open_views=opened(*views, n=4))
    assert not batch.mask.any()  # type: ignore[union-attr]
    assert not (batch.rays.far > batch.rays.near).any()


def test_a_smaller_number_of_rays_gives_the_first_of_a_larger() -> None:
    pixels, which = some_pixels(MIXED), opened(0, 4, n=6)
    many, few = (draw_rays(pixels, make_key(3), n, open_views=which) for n in (100, 40))
    assert torch.equal(many.rays.directions[:40], few.rays.directions)


@pytest.mark.gpu
def test_a_graph_replays_the_draw_for_other_steps_and_other_views() -> None:
    pixels = Pixels(*to("cuda", some_pixels(MIXED, 4, True, 0.5)))
    key, which = make_key(1, device="cuda"), opened(0, n=6).cuda()
    draw_rays(pixels, key, 300, open_views=which)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch = draw_rays(pixels, key, 300, open_views=which)
    for step in range(3):
        key[2].fill_(step)
        which.copy_(opened(step, 4, n=6))
        graph.replay()
        expected = draw_rays(pixels, key, 300, open_views=which)
        assert torch.equal(batch.rays.directions, expected.rays.directions)
        assert torch.equal(batch.rgb, expected.rgb)


def test_wrong_views_are_named() -> None:
    with pytest.raises(ValueError, match=r"open_views: expected shape \[6\], got \[5\]"):
        draw_rays(some_pixels(MIXED), make_key(0), 5, open_views=opened(0, n=5))
    with pytest.raises(ValueError, match=r"open_views: expected dtype torch\.bool, got torch\.int64"):
        draw_rays(some_pixels(MIXED), make_key(0), 5, open_views=torch.ones(6, dtype=torch.int64))
