from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.draw_rays import background_reference, draw_background, draw_rays, reference
from lightning_nerf.ops.random import STREAM_BACKGROUND, STREAM_RAYS, make_key, random_uniform
from tests.ops.harness import DEVICES, assert_detected, check_op, rand, to

# Camera coordinates come from the same operations in the same order; then some ten float32 roundings of numbers up to 1.5,
# one of which a colour shares, where the reference multiplies by 1 / 255.
TOLERANCE = {"rtol": 5e-7, "atol": 1e-6}
# name -> channels, times, share of drawable pixels (None: no list), n_rays, capacity
CASES: dict[str, tuple[int, bool, float | None, int | None, int]] = {
    "no rays": (3, True, None, 3, 0),
    "one ray": (3, False, None, None, 1),
    "all pixels": (3, True, None, None, 1000),
    "alpha": (4, False, None, None, 257),
    "drawable pixels": (4, True, 0.3, None, 1000),
    "some active": (4, True, 0.3, 63, 128),
    "none active": (3, False, None, 0, 64),
    "more wanted than there is room": (3, False, None, 2**31 - 1, 64),
}


def arguments(name: str, v: int = 5, h: int = 7, w: int = 11) -> tuple[Any, ...]:
    channels, times, share, n_rays, capacity = CASES[name]
    images = (rand(v, h, w, channels, seed=0) * 256).byte()
    c2w = torch.cat([torch.linalg.qr(rand(v, 3, 3, seed=1, low=-1))[0], rand(v, 3, 1, seed=2, low=-4, high=4)], -1)
    intrinsics = torch.tensor([9.0, 8.0, w / 2, h / 2]) + rand(v, 4, seed=3)
    pixels = None if share is None else (rand(v * h * w, seed=4) < share).nonzero()[:, 0]
    wanted = None if n_rays is None else torch.tensor(n_rays, dtype=torch.int32)
    key = make_key(2**35 + 3, rank=1, step=17)
    return images, c2w, intrinsics, rand(v, seed=5) if times else None, pixels, key, wanted, capacity, 0.25, 6.5


def public(*args: Any) -> Any:
    images, c2w, intrinsics, times, pixels, key, n_rays, capacity, near, far = args
    return draw_rays(images, c2w, intrinsics, key, capacity, near=near, far=far, times=times, pixels=pixels, n_rays=n_rays)


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
    channels, times, _, n_rays, capacity = CASES[name]
    batch = public(*arguments(name))
    assert (batch.alpha is None) == (channels == 3)
    assert (batch.rays.times is None) == (not times)
    assert (batch.mask is None) == (n_rays is None)
    present = [value for value in (*batch.rays, *batch[1:]) if value is not None]
    assert all(len(value) == capacity and value.is_contiguous() for value in present)
    if n_rays is not None:
        args = list(arguments(name))
        args[6] = args[6].long()
        torch.testing.assert_close(public(*args), batch, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_draws_reach_every_pixel_of_more_than_24_bits(device: str) -> None:
    """64 million pixels, recovered from the directions. A single float32 would leave the two lowest bits 0."""
    side, n = 2**13, 80_000
    camera = (torch.eye(4, device=device)[None, :3], torch.tensor([[1.0, 1.0, 0.0, 0.0]], device=device))
    images = torch.empty(1, side, side, 3, dtype=torch.uint8, device=device)  # colours don't matter
    directions = draw_rays(images, *camera, make_key(2, device=device), n, near=0, far=1).rays.directions.double()
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


@pytest.mark.parametrize("change", ["image y points up", "one ray more is active"])
def test_the_comparison_detects(change: str) -> None:
    def mutated(*args: Any) -> tuple[Tensor, ...]:
        changed = list(args)
        if change == "image y points up":
            changed[1] = changed[1] * torch.tensor([1.0, -1.0, 1.0, 1.0])
        else:
            changed[6] = changed[6] + 1
        return reference(*changed)

    check = {"device": "cpu", "opcheck": False, **TOLERANCE}
    assert_detected(lambda: check_op("draw_rays", mutated, arguments("some active"), **check))


def test_the_reference_passes_gradcheck() -> None:
    args = list(arguments("drawable pixels", v=2))
    args[7] = 6
    inputs = [args[i].double().requires_grad_() for i in (1, 2, 3)]

    def function(*differentiable: Tensor) -> tuple[Tensor, ...]:
        outputs = reference(args[0], *differentiable, *args[4:])
        return outputs[0], outputs[1], outputs[4]

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("device", DEVICES)
def test_cameras_that_require_a_gradient_get_it(device: str) -> None:
    args = list(to(device, arguments("all pixels")))
    expected = public(*args)
    args[1] = args[1].clone().requires_grad_()
    batch = public(*args)
    torch.testing.assert_close(batch.rays.directions, expected.rays.directions, **TOLERANCE)
    batch.rays.origins.sum().backward()
    drawn = torch.bincount(batch.image_index, minlength=5).float()
    assert torch.equal(args[1].grad[:, :, 3], drawn[:, None].expand(-1, 3))


def test_bad_arguments_are_named() -> None:
    names = ["images", "c2w", "intrinsics", "times", "pixels", "key", "n_rays", "capacity", "near", "far"]
    args = dict(zip(names, arguments("some active"), strict=True))
    for name, value, message in [
        ("images", args["images"].float(), "images: expected dtype torch.uint8, got torch.float32"),
        ("images", args["images"][..., :2], "images: expected 3 or 4 channels, got 2"),
        ("images", args["images"][..., :3], "images: expected a contiguous tensor, got strides"),
        ("c2w", args["c2w"][:2], r"c2w: expected shape \[5, 3, 4\], got \[2, 3, 4\]"),
        ("intrinsics", args["intrinsics"].to("meta"), r"intrinsics: expected a tensor on cpu \(where key is\), got meta"),
        ("times", torch.zeros(3), r"times: expected shape \[5\], got \[3\]"),
        ("pixels", torch.zeros(3).int(), "pixels: expected dtype torch.int64, got torch.int32"),
        ("pixels", torch.zeros(0).long(), "images, pixels: expected at least one pixel to draw, got none"),
        ("key", torch.zeros(2).long(), r"key: expected shape \[3\], got \[2\]"),
        ("n_rays", torch.zeros(1).int(), r"n_rays: expected shape \[\], got \[1\]"),
        ("capacity", -1, r"capacity: expected 0 <= capacity < 2\*\*31, got -1"),
        ("far", math.inf, "near, far: expected finite numbers, got 0.25, inf"),
    ]:
        with pytest.raises(ValueError, match=message):
            public(*{**args, name: value}.values())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [0, 1, 1000])
@pytest.mark.parametrize(("step", "random_steps"), [(0, 0), (6, 7), (7, 7), (2**40, 2**63 - 1)])
def test_background_gives_the_bits_of_the_reference(device: str, n: int, step: int, random_steps: int) -> None:
    args = (make_key(2**35 + 3, rank=1, step=step), n, random_steps, 0.25, 0.5, 1.0)
    check_op("draw_background", background_reference, args, device=device, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_backgrounds_are_random_first_and_then_the_colour(device: str) -> None:
    colour = (0.25, 0.5, 1.0)
    for step, steps, wanted, random in [(6, 7, colour, True), (7, 7, colour, False), (10**6, 0, None, True)]:
        key = make_key(3, step=step).to(device)
        drawn = draw_background(key, 50, colour=wanted, random_steps=steps)
        expected = torch.tensor([colour]).expand(50, 3).to(device)
        assert torch.equal(drawn, random_uniform(key, STREAM_BACKGROUND, 50, 3) if random else expected)


def test_the_comparison_detects_one_step_too_many() -> None:
    def mutated(key: Tensor, n: int, random_steps: int, *colour: float) -> Tensor:
        return background_reference(key, n, random_steps + 1, *colour)

    args = (make_key(0, step=7), 20, 7, 0.0, 0.0, 0.0)
    assert_detected(lambda: check_op("draw_background", mutated, args, device="cpu", rtol=0, atol=0, opcheck=False))


def test_bad_arguments_of_backgrounds_are_named() -> None:
    with pytest.raises(ValueError, match=r"key: expected dtype torch.int64"):
        draw_background(make_key(0).int(), 1, colour=None)
    with pytest.raises(ValueError, match=r"n: expected 0 <= n < 2\*\*31, got -1"):
        draw_background(make_key(0), -1, colour=None)
    with pytest.raises(ValueError, match="random_steps: expected >= 0, got -1"):
        draw_background(make_key(0), 1, colour=None, random_steps=-1)
