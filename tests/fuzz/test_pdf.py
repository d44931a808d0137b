from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_nerf import nerfacc
from lightning_nerf.nerfacc.losses import distortion
from tests.fuzz.strategies import (
    FLOATS,
    INDICES,
    INF,
    NAN,
    STRANGE,
    assert_finite_grads,
    assert_like,
    bounded,
    counts,
    fuzz,
    indices_of,
    packed_info_of,
    tensors,
)
from tests.ops.harness import DEVICES

EDGES = (0.0, 1e-45, 0.25, 0.25, 1.0, 1.0 + 2**-23, 1e4, 1e9)


def places(data: st.DataObject, device: str, rays: list[int] | None, dtype: torch.dtype, kind: type) -> object:
    """Ascending edges or samples of rays: in rows, or in one list for the given counts."""
    if rays is None:
        shape = (data.draw(st.integers(0, 3)), data.draw(st.integers(0, 5)))
        return kind(data.draw(tensors(shape, EDGES, device, [dtype])).clamp(max=6e4).sort(-1).values)
    parts = [data.draw(tensors((n,), EDGES, device, [dtype])).clamp(max=6e4).sort().values for n in rays]
    vals = torch.cat(parts) if parts else torch.zeros(0, device=device, dtype=dtype)
    index = data.draw(st.sampled_from(INDICES))
    return kind(vals, packed_info_of(rays, device, index), indices_of(rays, device, index))


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_importance_sampling(device: str, data: st.DataObject) -> None:
    sizes = data.draw(st.none() | counts())
    dtype = data.draw(st.sampled_from(FLOATS))
    intervals = places(data, device, sizes, dtype, nerfacc.RayIntervals)
    edges = intervals.vals
    cdfs = data.draw(tensors(edges.shape, (0.0, 0.1, 0.5, 1.0, NAN, INF, -INF, -1.0, 1e-45), device, FLOATS))
    if data.draw(st.booleans()):  # a proper one
        cdfs = cdfs.nan_to_num(0.3, 1.0, 0.0).sort(-1).values
    n_rays = edges.shape[0] if sizes is None else len(sizes)
    number = data.draw(st.integers(0, 5))
    several = data.draw(st.none() | st.lists(st.integers(0, 3), min_size=n_rays, max_size=n_rays))
    wanted = number if several is None else torch.tensor(several, dtype=torch.int64, device=device)
    with bounded():
        new, samples = nerfacc.importance_sampling(intervals, cdfs, wanted, data.draw(st.booleans()))
        if several is None:
            assert_like(samples.vals, (n_rays, number), dtype, device)
            assert_like(new.vals, (n_rays, number + 1), dtype, device)
            lists = [*new.vals, *samples.vals]
        else:
            assert_like(samples.vals, (sum(several),), dtype, device)
            assert_like(new.vals, (sum(several) + sum(n > 0 for n in several),), dtype, device)
            assert_like(samples.packed_info, (n_rays, 2), torch.int64, device)
            assert_like(new.is_left, new.vals.shape, torch.bool, device)
            lists = [*new.vals.split(new.packed_info[:, 1].tolist()), *samples.vals.split(several)]
        if several is None or n_rays:
            assert all((values[1:] >= values[:-1]).all() for values in lists)


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_searchsorted(device: str, data: st.DataObject) -> None:
    sizes = data.draw(st.none() | counts())
    dtype = data.draw(st.sampled_from(FLOATS))
    keys = places(data, device, sizes, dtype, nerfacc.RayIntervals)
    n_rays = keys.vals.shape[0] if sizes is None else len(sizes)
    if sizes is None:
        values = nerfacc.RaySamples(data.draw(tensors((n_rays, 3), (*STRANGE, *EDGES), device, [dtype])))
    else:
        queries = data.draw(st.lists(st.integers(0, 3), min_size=n_rays, max_size=n_rays))
        vals = data.draw(tensors((sum(queries),), (*STRANGE, *EDGES), device, [dtype]))
        values = nerfacc.RaySamples(vals, ray_indices=indices_of(queries, device))
    with bounded():
        left, right = nerfacc.searchsorted(keys, values)
        for found in (left, right):
            assert_like(found, values.vals.shape, torch.int64, device)
            assert ((found >= -1) & (found <= max(keys.vals.numel(), 1))).all()


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_distortion(device: str, data: st.DataObject) -> None:
    sizes = data.draw(counts())
    n = sum(sizes)
    weights = data.draw(tensors((n,), (0.0, 0.5, 1.0, -1.0), device, FLOATS)).requires_grad_()
    t_starts, t_ends = (data.draw(tensors((n,), EDGES[:-1], device, FLOATS[:2])).requires_grad_() for _ in range(2))
    index = indices_of(sizes, device, data.draw(st.sampled_from(INDICES)))
    with bounded():
        loss = distortion(weights, t_starts, t_ends, index, len(sizes))
        double = torch.float64 in (weights.dtype, t_starts.dtype, t_ends.dtype)
        assert_like(loss, (len(sizes), 1), torch.float64 if double else torch.float32, device)
        assert_finite_grads([loss], [weights, t_starts, t_ends])


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_prop_net(device: str, data: st.DataObject) -> None:
    n_rays = data.draw(st.integers(0, 3))
    numbers = data.draw(st.lists(st.integers(0, 5), max_size=2))
    n = data.draw(st.integers(0, 4))
    strange = data.draw(tensors((len(STRANGE),), STRANGE, device)).requires_grad_()
    near, far = data.draw(st.sampled_from([(0.1, 4.0), (1e-6, 1e9), (1e6, 1e6), (2.0, 1.0), (1e-30, 1e10)]))
    kind = data.draw(st.sampled_from(["uniform", "lindisp"]))
    grads = data.draw(st.booleans())

    def densities(t_starts: Tensor, t_ends: Tensor) -> Tensor:
        assert t_starts.isfinite().all()
        return strange[torch.arange(t_starts.numel(), device=device) % len(strange)].view(t_starts.shape)

    estimator = nerfacc.PropNetEstimator().to(device)
    with bounded():
        arguments = ([densities] * len(numbers), numbers, n, n_rays, near, far, kind)
        t_starts, t_ends = estimator.sampling(*arguments, stratified=data.draw(st.booleans()), requires_grad=grads)
        assert_like(t_starts, (n_rays, n), torch.float32, device)
        assert_like(t_ends, (n_rays, n), torch.float32, device)
        trans = data.draw(tensors((n_rays, n), (0.0, 0.5, 1.0), device))
        loss = estimator.compute_loss(trans, 2.0)
        assert_like(loss, (), torch.float32, device)
        if loss.requires_grad:
            assert_finite_grads([loss], [strange])
