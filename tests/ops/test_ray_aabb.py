from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.ray_aabb import ray_aabb, reference
from tests.ops.harness import DEVICES, assert_detected, check_op, rand

UNIT = torch.tensor([[[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]])


def random_rays(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    origins, directions = rand(n, 3, seed=seed, low=-3, high=3), rand(n, 3, seed=seed + 1, low=-1)
    directions[::7, 0] = 0.0  # parallel to two faces
    directions[::11, 1:] = 0.0  # to an edge
    origins[::5] *= 0.2  # inside
    return origins, directions


def random_boxes(n: int, seed: int = 9) -> Tensor:
    low = rand(n, 3, seed=seed, low=-2, high=1)
    return torch.stack([low, low + rand(n, 3, seed=seed + 1, high=2)], 1)


def hit(origin: list[float], direction: list[float], box: Tensor = UNIT) -> tuple[float, float, bool]:
    t_min, t_max, hits = ray_aabb(torch.tensor([origin]).float(), torch.tensor([direction]).float(), box)
    return float(t_min), float(t_max), bool(hits)


MISS = (math.inf, math.inf, False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n_rays", "n_boxes"), [(0, 1), (1, 0), (1, 1), (300, 5)])
def test_kernel_gives_the_bits_of_the_reference(device: str, n_rays: int, n_boxes: int) -> None:
    args = (*random_rays(n_rays), random_boxes(n_boxes))
    check_op("ray_aabb", reference, args, device=device, rtol=0, atol=0)  # the same operations in the same order


@pytest.mark.parametrize("device", DEVICES)
def test_extreme_values_match_the_reference(device: str) -> None:
    values = torch.tensor([0.0, -0.0, 1e-45, -1e-38, 1.0, -1.0, 3e38, -3e38, math.inf, -math.inf, math.nan])
    index = torch.randint(len(values), (4000, 6), generator=torch.Generator().manual_seed(0))
    rays = values[index]
    boxes = torch.cat([UNIT, 3e38 * UNIT, math.inf * UNIT, 0 * UNIT, -UNIT, math.nan * UNIT])
    args = (rays[:, :3].contiguous(), rays[:, 3:].contiguous(), boxes)
    check_op("ray_aabb", reference, args, device=device, rtol=0, atol=0, opcheck=False)


def test_known_rays() -> None:
    assert hit([-3, 0, 0], [1, 0, 0]) == (2, 4, True)
    assert hit([-3, 0, 0], [2, 0, 0]) == (1, 2, True)  # t in units of the direction
    assert hit([0, 0, 0], [0, 0, 4]) == (-0.25, 0.25, True)  # inside
    assert hit([3, 0, 0], [1, 0, 0]) == (-4, -2, True)  # behind
    assert hit([-3, 1, 1], [1, 0, 0]) == (2, 4, True)  # along an edge
    assert hit([-3, 1.01, 0], [1, 0, 0]) == MISS
    assert hit([-2, 0, 0], [1, 1, 0]) == MISS  # touches an edge only
    assert hit([0, 0, 0], [0, 0, 0]) == (-math.inf, math.inf, True)  # a direction of zero stays inside, or outside
    assert hit([2, 0, 0], [0, 0, 0]) == MISS


def test_boxes_without_volume_and_nan_are_missed() -> None:
    for box in (0 * UNIT, -UNIT, UNIT * torch.tensor([1.0, 1.0, 0.0]), math.nan * UNIT):
        assert hit([0, 0, 0], [1, 2, 3], box) == MISS
    assert hit([math.nan, 0, 0], [1, 0, 0]) == MISS
    assert hit([0, math.nan, 0], [1, 0, 0]) == MISS  # also where the ray is parallel to that slab
    assert hit([0, 0, 0], [1, math.nan, 0]) == MISS


def test_hits_are_the_points_inside() -> None:
    origins, directions = random_rays(200)
    boxes = random_boxes(4)
    t_mins, t_maxs, hits = ray_aabb(origins, directions, boxes)
    assert 0.05 < hits.float().mean() < 0.95
    t = torch.linspace(-20, 20, 2001, dtype=torch.float64)
    points = origins[:, None] + t[:, None] * directions[:, None]  # [R, T, 3]
    for m, (low, high) in enumerate(boxes.double()):
        inside = ((points > low) & (points < high)).all(-1)
        # A rounding of t or of a plane's distance moves an end by far less than 1e-4.
        closely = hits[:, m, None] & (t > t_mins[:, m, None] + 1e-4) & (t < t_maxs[:, m, None] - 1e-4)
        loosely = hits[:, m, None] & (t > t_mins[:, m, None] - 1e-4) & (t < t_maxs[:, m, None] + 1e-4)
        assert bool(((inside | ~closely) & (loosely | ~inside)).all())


def test_near_and_far_cut_the_interval() -> None:
    origins, directions = torch.tensor([[-3.0, 0, 0]]).expand(5, 3), torch.tensor([[1.0, 0, 0]]).expand(5, 3)
    near = torch.tensor([0.0, 3.0, 0.0, 4.0, math.nan])
    far = torch.tensor([9.0, 9.0, 3.5, 9.0, 9.0])
    t_mins, t_maxs, hits = (a[:, 0].tolist() for a in ray_aabb(origins, directions, UNIT, near, far))
    assert hits == [True, True, True, False, False]
    assert t_mins == [2, 3, 2, math.inf, math.inf]
    assert t_maxs == [4, 4, 3.5, math.inf, math.inf]


def test_gets_no_gradient() -> None:
    origins, directions = (a.requires_grad_() for a in random_rays(3))
    assert not any(a.requires_grad for a in ray_aabb(origins, directions, UNIT, origins[:, 0]))


def test_the_comparison_detects_a_missing_axis() -> None:
    def mutated(origins: Tensor, directions: Tensor, aabbs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return reference(origins * torch.tensor([1.0, 1.0, 0.0]), directions * torch.tensor([1.0, 1.0, 0.0]), aabbs)

    args = (*random_rays(50), UNIT)
    assert_detected(lambda: check_op("ray_aabb", mutated, args, device="cpu", rtol=0, atol=0, opcheck=False))


def test_bad_arguments_are_named() -> None:
    origins, directions = random_rays(4)
    with pytest.raises(ValueError, match=r"directions: expected shape \[4, 3\], got \[3, 3\]"):
        ray_aabb(origins, directions[1:], UNIT)
    with pytest.raises(ValueError, match=r"aabbs: expected shape \[M, 2, 3\], got \[2, 3\]"):
        ray_aabb(origins, directions, UNIT[0])
    with pytest.raises(ValueError, match=r"origins: expected dtype torch.float32, got torch.float64"):
        ray_aabb(origins.double(), directions, UNIT)
    with pytest.raises(ValueError, match=r"far: expected shape \[4\]"):
        ray_aabb(origins, directions, UNIT, far=torch.zeros(1))
