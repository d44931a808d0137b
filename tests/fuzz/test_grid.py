from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_nerf import nerfacc
from tests.fuzz.rays import CENTERS, LIMITS, PLACES, assert_samples, binaries, box, planes, rays, steps, too_many
from tests.fuzz.strategies import FLOATS, INF, NAN, STRANGE, answer, assert_finite, assert_like, bounded, fuzz, tensors
from tests.ops.harness import DEVICES


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_ray_aabb_intersect(device: str, data: st.DataObject) -> None:
    rays_o, rays_d = data.draw(rays(device, 0.0))
    aabbs = data.draw(tensors((data.draw(st.integers(0, 3)), 6), PLACES, device))
    near, far = data.draw(st.sampled_from([(-INF, INF), (0.0, 1e9), (2.0, 1.0), (INF, -INF)]))
    with bounded():
        t_mins, t_maxs, hits = nerfacc.ray_aabb_intersect(rays_o, rays_d, aabbs, near, far, 7.0)
        shape = (len(rays_o), len(aabbs))
        assert t_mins.shape == t_maxs.shape == shape
        assert_like(hits, shape, torch.bool, device)
        assert not t_mins.isnan().any()
        assert not t_maxs.isnan().any()
        assert (t_mins[~hits] == 7).all()
        assert not hits[rays_o.isnan().any(-1) | rays_d.isnan().any(-1)].any()


@st.composite
def boxes(draw: st.DrawFn, levels: int, center: float, device: str) -> Tensor:
    """[M, 6]: each twice as large as the one before, or anywhere, or no boxes at all."""
    kind = draw(st.sampled_from(["nested", "anywhere", "strange"]))
    if kind == "strange":
        return draw(tensors((levels, 6), [p for p in PLACES if p != 1e6], device))
    if kind == "nested":
        return torch.stack([box(center, 2.0**level, device) for level in range(levels)])
    halves = draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=levels, max_size=levels))
    places = draw(st.lists(st.sampled_from([center, center + 1.5]), min_size=levels, max_size=levels))
    return torch.stack([box(c, half, device) for c, half in zip(places, halves, strict=True)])


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_traverse_grids(device: str, data: st.DataObject) -> None:
    center = data.draw(st.sampled_from(CENTERS))
    rays_o, rays_d = data.draw(rays(device, center))
    n = len(rays_o)
    cells = data.draw(binaries(device))
    step: dict[str, Any] = data.draw(steps() | st.sampled_from([{"step_size": None}, {"step_size": -1.0}]))
    limit = data.draw(st.sampled_from([None, 0, 1, 5]))
    near, far = data.draw(planes(n, device)), data.draw(planes(n, device))
    allocate = bool(limit) and data.draw(st.booleans())
    mask = None if data.draw(st.booleans()) else torch.arange(n, device=device) % 2 == 0
    options: dict[str, Any] = {"traverse_steps_limit": limit, "over_allocate": allocate, "rays_mask": mask}
    aabbs = data.draw(boxes(len(cells), center, device))

    def traverse() -> Any:
        return nerfacc.traverse_grids(rays_o, rays_d, cells, aabbs, near, far, **step, **options)

    result = answer(["step_size", "aabbs", "aabb"], traverse)
    if result is None:
        size = step["step_size"]
        many = size is not None and size > 0 and too_many(size, rays_d)
        assert many or not (aabbs[:, :3] < aabbs[:, 3:]).all() or not aabbs.isfinite().all()
        return
    intervals, samples, planes_ = result
    assert planes_.shape == (n,)
    if near is None:
        assert not planes_.isnan().any()
    assert_finite(intervals, samples)
    for each in (intervals, samples):
        assert_like(each.packed_info, (n, 2), torch.int64, device)
        assert_like(each.vals, each.ray_indices.shape, torch.float32, device)
    found = (samples.ray_indices, intervals.vals[intervals.is_left], intervals.vals[intervals.is_right])
    if allocate:
        assert len(samples.vals) == limit * (n if mask is None else int(mask.sum()))
        found = (samples.ray_indices[samples.is_valid], *found[1:])
    assert_samples(found, n, device)


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_occ_grid_sampling(device: str, data: st.DataObject) -> None:
    center = data.draw(st.sampled_from(CENTERS))
    cells = data.draw(binaries(device))
    estimator = nerfacc.OccGridEstimator(box(center, 1.0, "cpu"), list(cells.shape[1:]), len(cells)).to(device)
    estimator.binaries.copy_(cells)
    rays_o, rays_d = data.draw(rays(device, center))
    values = data.draw(tensors((7,), STRANGE, device, FLOATS))

    def function(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        return values[ray_indices % 7]

    step = data.draw(steps())
    options: dict[str, Any] = {
        **data.draw(st.sampled_from([{}, {"sigma_fn": function}, {"alpha_fn": function}])),
        "near_plane": data.draw(st.sampled_from(LIMITS)),
        "far_plane": data.draw(st.sampled_from(LIMITS)),
        "t_min": data.draw(planes(len(rays_o), device)),
        "t_max": data.draw(planes(len(rays_o), device)),
        "render_step_size": step["step_size"],
        "cone_angle": step["cone_angle"],
        "early_stop_eps": data.draw(st.sampled_from([-1.0, 0.0, 1e-4, 1.0])),
        "alpha_thre": data.draw(st.sampled_from([-1.0, 0.0, 0.01, 1.0])),
        "stratified": data.draw(st.booleans()),
    }
    found = answer(["step_size"], lambda: estimator.sampling(rays_o, rays_d, **options))
    assert found is not None or too_many(step["step_size"], rays_d)
    if found is not None:
        assert_samples(found, len(rays_o), device)


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_occ_grid_update(device: str, data: st.DataObject) -> None:
    roi = box(data.draw(st.sampled_from(CENTERS)), data.draw(st.sampled_from([0.25, 1.0, 1e6])), "cpu")
    estimator = nerfacc.OccGridEstimator(roi, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))).to(device)
    values = data.draw(tensors((7,), STRANGE, device, FLOATS))

    def function(points: Tensor) -> Tensor:
        assert points.isfinite().all()
        return values[torch.arange(len(points), device=device) % 7]

    for step in data.draw(st.lists(st.sampled_from([0, 16, 256, 160000]), max_size=3)):
        with bounded():
            estimator.update_every_n_steps(step, function, data.draw(st.sampled_from([0.0, 0.01, 1e30])))
            assert_finite(estimator.occs)
            assert (estimator.occs >= 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e30, 0.0])
def test_mark_invisible_cells(device: str, bad: float) -> None:
    estimator = nerfacc.OccGridEstimator([-1, -1, -1, 1, 1, 1], 4).to(device)
    intrinsics, pose = torch.eye(3, device=device)[None], torch.eye(4, device=device)[None]
    for k, c2w in ((intrinsics * bad, pose), (intrinsics, pose * bad), (intrinsics[:0], pose[:0])):
        with bounded():
            answer(["K", "c2w"], lambda k=k, c2w=c2w: estimator.mark_invisible_cells(k, c2w, 10, 10))
            assert estimator.occs.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distance", [0.0, 1e6])
def test_a_giant_ray(device: str, distance: float) -> None:
    estimator = nerfacc.OccGridEstimator(box(distance, 1.0, "cpu"), 4).to(device)
    estimator.binaries.fill_(True)
    origins = torch.tensor([[0.0, distance, distance]], device=device)
    directions = torch.tensor([[1.0, 0.0, 0.0]], device=device)
    with bounded():
        found = estimator.sampling(origins, directions, far_plane=1e9, render_step_size=8e-6)
        assert_samples(found, 1, device)
        assert len(found[0]) > 10**5
