from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_nerf import nerfacc
from lightning_nerf.nerfacc.volrend import accumulate_along_rays_
from tests.fuzz.strategies import (
    FLOATS,
    INDICES,
    STRANGE,
    TIMES,
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


def layout(data: st.DataObject, device: str) -> tuple[tuple[int, ...], int, dict[str, Any]]:
    """Shape of the samples, the number of rays, and the arguments that say which sample is whose."""
    form = data.draw(st.sampled_from(["packed_info", "ray_indices", "last ray's index", "rows"]))
    if form == "rows":
        shape = tuple(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3)))
        return shape, torch.Size(shape[:-1]).numel(), {}
    sizes = data.draw(counts())
    dtype = data.draw(st.sampled_from(INDICES))
    if form == "packed_info":
        return (sum(sizes),), len(sizes), {"packed_info": packed_info_of(sizes, device, dtype)}
    where: dict[str, Any] = {"ray_indices": indices_of(sizes, device, dtype)}
    if form == "ray_indices":
        where["n_rays"] = len(sizes)
    return (sum(sizes),), len(sizes), where


def prefix(data: st.DataObject, shape: tuple[int, ...], device: str) -> Tensor | None:
    if data.draw(st.booleans()):
        return None
    return data.draw(tensors(shape, (0.0, 0.5, 1.0), device)).requires_grad_()


def assert_answers(
    outputs: tuple[Tensor, ...], shape: tuple[int, ...], inputs: list[Tensor | None], samples: tuple[Tensor, ...]
) -> None:
    """float64 where one of the samples' tensors is."""
    given_inputs = [i for i in inputs if i is not None]
    double = any(t.dtype is torch.float64 for t in samples)
    for out in outputs:
        assert_like(out, shape, torch.float64 if double else torch.float32, given_inputs[0].device.type)
        assert ((out >= 0) & (out <= 1)).all()
    assert_finite_grads(outputs, given_inputs)


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_from_alpha(device: str, data: st.DataObject) -> None:
    shape, _, where = layout(data, device)
    alphas = data.draw(tensors(shape, STRANGE, device, FLOATS)).requires_grad_()
    before = prefix(data, shape, device)
    with bounded():
        weights, trans = nerfacc.render_weight_from_alpha(alphas, **where, prefix_trans=before)
        assert_answers((weights, trans), shape, [alphas, before], (alphas,))
        trans = nerfacc.render_transmittance_from_alpha(alphas, **where, prefix_trans=before)
        assert_answers((trans,), shape, [alphas, before], (alphas,))
        thresholds = {"early_stop_eps": data.draw(st.sampled_from([0.0, 1e-4, 2.0])), "alpha_thre": 0.1}
        visible = nerfacc.render_visibility_from_alpha(alphas, **where, **thresholds, prefix_trans=before)
        assert_like(visible, shape, torch.bool, device)
        assert not visible[alphas.isnan()].any()


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_from_density(device: str, data: st.DataObject) -> None:
    shape, _, where = layout(data, device)
    t_starts, t_ends = (data.draw(tensors(shape, TIMES, device, FLOATS[:2])) for _ in range(2))
    sigmas = data.draw(tensors(shape, STRANGE, device, FLOATS)).requires_grad_()
    if data.draw(st.booleans()):  # learned edges
        t_starts, t_ends = t_starts.float().requires_grad_(), t_ends.float().requires_grad_()
    before = prefix(data, shape, device)
    learned = [sigmas, *(t for t in (t_starts, t_ends, before) if t is not None and t.requires_grad)]
    with bounded():
        outputs = nerfacc.render_weight_from_density(t_starts, t_ends, sigmas, **where, prefix_trans=before)
        assert_answers(outputs, shape, learned, (t_starts, t_ends, sigmas))
        outputs = nerfacc.render_transmittance_from_density(t_starts, t_ends, sigmas, **where, prefix_trans=before)
        assert_answers(outputs, shape, learned, (t_starts, t_ends, sigmas))
        visible = nerfacc.render_visibility_from_density(t_starts, t_ends, sigmas, **where, alpha_thre=0.1)
        assert_like(visible, shape, torch.bool, device)
        assert not visible[sigmas.isnan()].any()


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_accumulate_along_rays(device: str, data: st.DataObject) -> None:
    shape, n_rays, where = layout(data, device)
    index = where.get("ray_indices")
    if index is None:
        rays = shape[:-1]
        if "packed_info" in where:
            rays = ()
    else:
        rays = (n_rays,)
        index = index.flip(0)  # in any order
    weights = data.draw(tensors(shape, (0.0, 0.5, -1.0, 1e30), device, FLOATS[:2])).requires_grad_()
    values = data.draw(tensors((*shape, 2), (0.0, 0.5, 2.0), device, FLOATS)).requires_grad_()
    with bounded():
        out = nerfacc.accumulate_along_rays(weights, values, index, None if index is None else n_rays)
        assert_like(out, (*rays, 2), torch.promote_types(weights.dtype, values.dtype), device)
        assert_finite_grads([out], [weights, values])
        outputs = torch.zeros(*rays, 2, dtype=out.dtype, device=device)
        assert accumulate_along_rays_(weights.detach(), values.detach(), index, outputs) is None
        torch.testing.assert_close(outputs, out.detach())
        assert_like(nerfacc.accumulate_along_rays(weights, None, index, n_rays), (*rays, 1), weights.dtype, device)


GIANT: dict[str, Callable[..., Any]] = {
    "alpha": lambda x, t, where: nerfacc.render_weight_from_alpha(x, **where),
    "density": lambda x, t, where: nerfacc.render_weight_from_density(t[:-1], t[1:], x, **where),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("function", GIANT)
@pytest.mark.parametrize("value", [float("nan"), -1.0, 0.0, 1e-4, 1.5, float("inf")])
def test_a_giant_ray(device: str, function: str, value: float) -> None:
    n = 10**5 + 1
    t = torch.linspace(0, 1e9, n + 1, device=device)
    for where in ({"packed_info": packed_info_of([0, n], device)}, {"ray_indices": indices_of([0, n], device)}):
        x = torch.full((n,), value, device=device, requires_grad=True)
        with bounded():
            assert_answers(GIANT[function](x, t, where), (n,), [x], (x,))
