from __future__ import annotations

import itertools
import math

import pytest
import torch

from lightning_nerf.nerfacc.grid import _enlarge_aabb, _query, _ray_aabb_intersect, ray_aabb_intersect
from tests.nerfacc.scene import BOX, random_rays, with_device
from tests.ops.harness import DEVICES, rand

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("device", DEVICES)
def test_boxes_are_hit_where_points_of_the_ray_are_inside(device: str) -> None:
    origins, directions = random_rays(200)
    low = rand(30, 3, seed=4, low=-4, high=3)
    boxes = torch.cat([low, low + rand(30, 3, seed=5, low=0.1, high=3)], -1)
    t_mins, t_maxs, hits = (x.cpu() for x in ray_aabb_intersect(*with_device(device, origins, directions, boxes)))
    assert 200 < hits.sum() < 5800
    assert (t_mins[~hits] == INF).all()
    assert (t_maxs[~hits] == INF).all()
    assert (t_maxs[hits] > 0).all()
    o, d = origins.double()[:, None], directions.double()[:, None]
    for t, inside in (((t_mins + t_maxs) / 2, True), (t_mins - 1e-3, False), (t_maxs + 1e-3, False)):
        p = o + torch.where(hits, t, 0.0).double()[..., None] * d
        is_in = ((boxes[:, :3] <= p) & (p <= boxes[:, 3:])).all(-1)
        long = hits & (t_maxs - t_mins > 1e-4)
        assert (is_in == inside)[long].all()
    # A miss has no point inside, in front of its origin.
    grid = torch.linspace(0, 20, 400, dtype=torch.float64)
    p = o[:, :, None] + grid[:, None] * d[:, :, None]
    assert not (((boxes[:, None, :3] <= p) & (p <= boxes[:, None, 3:])).all(-1).any(-1) & ~hits).any()


@pytest.mark.parametrize("device", DEVICES)
def test_planes_clamp_and_misses_get_their_value(device: str) -> None:
    origins = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 5, 0], [NAN, 0, 0]])
    directions = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0]])
    boxes = torch.tensor([[1.0, -1, -1, 2, 1, 1], [-1.0, -1, -1, 3, 1, 1]])
    args = with_device(device, origins, directions, boxes)
    t_mins, t_maxs, hits = ray_aabb_intersect(*args, near_plane=0.5, far_plane=1.5, miss_value=-7.0)
    assert hits.tolist() == [[True, True], [False, True], [False, False], [False, False]]
    assert t_mins.tolist() == [[1.0, 0.5], [-7.0, 0.5], [-7.0] * 2, [-7.0] * 2]
    assert t_maxs.tolist() == [[1.5, 1.5], [-7.0, 1.0], [-7.0] * 2, [-7.0] * 2]
    t_mins, t_maxs, hits = ray_aabb_intersect(*args, near_plane=10.0, far_plane=20.0)
    assert hits[0].tolist() == [True, True]
    assert t_mins[0].tolist() == t_maxs[0].tolist() == [10.0, 10.0]
    for shape in ((0, 3), (2, 3)):
        for boxes_shape in ((0, 6), (3, 6)):
            empty = ray_aabb_intersect(torch.zeros(shape), torch.ones(shape), torch.zeros(boxes_shape))
            assert all(x.shape == (shape[0], boxes_shape[0]) for x in empty)
            assert not empty[2].any()


@pytest.mark.parametrize("device", DEVICES)
def test_the_two_intersections_agree(device: str) -> None:
    origins, directions = random_rays(300)
    directions[directions == 0] = 0.1
    low = rand(40, 3, seed=4, low=-4, high=3)
    args = with_device(device, origins, directions, torch.cat([low, low + rand(40, 3, seed=5, low=0.1, high=3)], -1))
    for limits in ((-INF, INF, INF), (0.3, 4.0, -1.0)):
        for a, b in zip(ray_aabb_intersect(*args, *limits), _ray_aabb_intersect(*args, *limits), strict=True):
            torch.testing.assert_close(a, b, rtol=2**-21, atol=1e-6)
    t_mins, _, hits = _ray_aabb_intersect(args[0].requires_grad_(), *args[1:])
    t_mins[hits].sum().backward()
    assert args[0].grad is not None
    assert args[0].grad.isfinite().all()


def test_query_reads_the_finest_level() -> None:
    data = torch.arange(2 * 2 * 4 * 2, dtype=torch.float32).reshape(2, 2, 4, 2) + 1
    center = (BOX[:3] + BOX[3:]) / 2
    for level, x, y, z in itertools.product(range(2), range(2), range(4), range(2)):
        fraction = (torch.tensor([x, y, z]) + 0.5) / torch.tensor([2, 4, 2]) - 0.5
        point = center + fraction * (BOX[3:] - BOX[:3]) * 2**level
        inner = level == 1 and (fraction.abs() < 0.25).all()
        values, inside = _query(point[None], data, BOX)
        assert inside.all()
        if not inner:
            assert values.item() == data[level, x, y, z]
    outside = torch.stack([center + torch.tensor([2.1, 0, 0]), center * NAN, center + INF])
    values, inside = _query(outside, data, BOX)
    assert not inside.any()
    assert not values.any()
    occupied, _ = _query(center[None], data > 0, BOX)
    assert occupied.dtype == torch.bool


def test_enlarging_keeps_the_center() -> None:
    torch.testing.assert_close(_enlarge_aabb(BOX, 2), torch.tensor([-2.0, -1.5, -1.0, 2.0, 2.5, 3.0]))
