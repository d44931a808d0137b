from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lightning_nerf
from lightning_nerf import nerfacc
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
    tensors,
)
from tests.ops.harness import DEVICES

RENDERING = {"top": lightning_nerf.rendering, "nerfacc": nerfacc.rendering}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("surface", RENDERING)
@fuzz
@given(st.data())
def test_packed_and_batched(device: str, surface: str, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        sizes = data.draw(counts())
        rays: tuple[int, ...] = (len(sizes),)
        shape: tuple[int, ...] = (sum(sizes),)
        where: dict[str, Any] = {
            "ray_indices": indices_of(sizes, device, data.draw(st.sampled_from(INDICES))),
            "n_rays": len(sizes),
        }
    else:
        rays = tuple(data.draw(st.lists(st.integers(0, 3), max_size=2)))
        shape, where = (*rays, data.draw(st.integers(0, 4))), {}
    n_channels = data.draw(st.sampled_from([1, 3, 4]))
    t_starts, t_ends = (data.draw(tensors(shape, TIMES, device, FLOATS[:1])) for _ in range(2))
    learned = data.draw(st.booleans())
    edges = [t.requires_grad_(learned) for t in (t_starts, t_ends)]
    absorbers = data.draw(tensors(shape, STRANGE, device, FLOATS)).requires_grad_()
    rgbs = data.draw(tensors((*shape, n_channels), (0.0, 0.5, 1.0), device, FLOATS)).requires_grad_()
    feature = torch.ones(*shape, 2, device=device)
    further = ({"feature": feature},) if data.draw(st.booleans()) else ()

    def function(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor | None) -> tuple[Any, ...]:
        assert t_starts.numel() > 0
        return (rgbs, absorbers, *further)

    background = data.draw(st.sampled_from([None, torch.full((n_channels,), 0.5, device=device)]))
    name = data.draw(st.sampled_from(["rgb_sigma_fn", "rgb_alpha_fn"]))
    with bounded():
        colors, opacities, depths, extras = RENDERING[surface](
            t_starts,
            t_ends,
            **where,
            **{name: function},
            render_bkgd=background,
            expected_depths=data.draw(st.booleans()),
        )
        empty = t_starts.numel() == 0
        double = not empty and torch.float64 in (absorbers.dtype, rgbs.dtype)
        dtype = torch.float64 if double else torch.float32
        unknown = background is None or (surface == "nerfacc" and n_channels == 1)  # NerfAcc's [1] is for all channels
        width = 3 if empty and unknown else n_channels
        assert_like(colors, (*rays, width), dtype, device)
        assert_like(opacities, (*rays, 1), dtype, device)
        assert_like(depths, (*rays, 1), dtype, device)
        for key in ("weights", "trans", *(["alphas"] if name == "rgb_sigma_fn" else [])):
            assert_like(extras[key], shape, dtype, device)
        if further and not empty:
            assert_like(extras["feature"], (*rays, 2), dtype, device)
        assert ((opacities >= 0) & (opacities <= 1 + 1e-6)).all()
        if learned and not empty:  # a density of 3e38 in a tiny interval may make them infinite, but nothing makes them NaN
            total = colors.sum() + opacities.sum() + depths.sum()
            for edge in torch.autograd.grad(total, edges, retain_graph=True, allow_unused=True):
                assert edge is None or not edge.isnan().any()
        assert_finite_grads([colors, opacities, depths], [absorbers, rgbs])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("surface", RENDERING)
@pytest.mark.parametrize("value", [float("nan"), -1.0, 0.0, 1e-4, 1.5, float("inf")])
@pytest.mark.parametrize("name", ["rgb_sigma_fn", "rgb_alpha_fn"])
def test_a_giant_ray(device: str, surface: str, value: float, name: str) -> None:
    n = 10**5 + 1
    absorbers = torch.full((n,), value, device=device, requires_grad=True)
    rgbs = torch.ones(n, 3, device=device, requires_grad=True)
    t = torch.linspace(0, 1e9, n + 1, device=device)
    with bounded():
        colors, opacities, depths, extras = RENDERING[surface](
            t[:-1], t[1:], indices_of([0, n], device), 2, **{name: lambda *_: (rgbs, absorbers)}
        )
        assert_like(colors, (2, 3), torch.float32, device)
        assert_like(extras["weights"], (n,), torch.float32, device)
        assert_finite_grads([colors, opacities, depths], [absorbers, rgbs])
