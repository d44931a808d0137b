from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_nerf.ops.composite import Composite, composite, composite_alphas
from tests.fuzz.strategies import (
    FLOATS,
    STRANGE,
    TIMES,
    assert_finite_grads,
    assert_like,
    bounded,
    counts,
    fuzz,
    offsets_of,
    tensors,
)
from tests.ops.harness import DEVICES

COLORS = (0.0, 0.5, 1.0, -2.0)


def assert_composite(out: Composite, n_rays: int, n: int, n_channels: int, dtype: torch.dtype, device: str) -> None:
    assert_like(out.channels, (n_rays, n_channels), dtype, device)
    assert_like(out.opacity, (n_rays,), dtype, device)
    assert_like(out.depth, (n_rays,), dtype, device)
    assert_like(out.n_samples, (n_rays,), torch.int32, device)
    assert ((out.opacity >= 0) & (out.opacity <= 1 + 1e-6)).all()
    for values in (out.weights, out.trans, out.alphas):
        if values is not None:
            assert_like(values, (n,), dtype, device)
            assert ((values >= 0) & (values <= 1)).all()


def inputs(data: st.DataObject, device: str) -> tuple[list[int], Tensor, Tensor, Tensor, Tensor]:
    """Counts of samples, absorbers, channels, begins and ends."""
    sizes = data.draw(counts())
    n = sum(sizes)
    absorbers = data.draw(tensors((n,), STRANGE, device, FLOATS))
    double = absorbers.dtype == torch.float64
    kinds = (torch.float64,) if double else (torch.float32, torch.float16, torch.bfloat16)
    channels = data.draw(tensors((n, data.draw(st.sampled_from([0, 1, 3, 33]))), COLORS, device, kinds))
    t_starts, t_ends = (
        data.draw(tensors((n,), TIMES, device, (torch.float32, torch.float64) if double else (torch.float32,)))
        for _ in range(2)
    )
    return sizes, absorbers, channels, t_starts, t_ends


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_composite(device: str, data: st.DataObject) -> None:
    sizes, densities, channels, t_starts, t_ends = inputs(data, device)
    channels[~(densities >= 0)] = float("nan")  # of void samples: ignored
    densities, channels = densities.requires_grad_(), channels.requires_grad_()
    given_ts = data.draw(st.booleans())
    intervals = (None, None) if given_ts else (t_starts, t_ends)
    background = None
    if channels.shape[1] >= 3 and data.draw(st.booleans()):
        background = torch.ones(3, device=device, requires_grad=True)
    with bounded():
        out = composite(
            densities,
            channels,
            *intervals,
            offsets_of(sizes, device),
            deltas=t_ends if given_ts else None,
            ts=t_starts if given_ts else None,
            early_stop_eps=data.draw(st.sampled_from([0.0, 1e-4, 0.99])),
            return_weights=True,
            return_trans=True,
            return_alphas=True,
            background=background,
        )
        dtype = torch.float64 if densities.dtype == torch.float64 else torch.float32
        assert_composite(out, len(sizes), sum(sizes), channels.shape[1], dtype, device)
        learned = [densities, channels] if background is None else [densities, channels, background]
        assert_finite_grads([o for o in out if o is not None and o.is_floating_point()], learned)


@pytest.mark.parametrize("device", DEVICES)
@fuzz
@given(st.data())
def test_composite_alphas(device: str, data: st.DataObject) -> None:
    sizes, alphas, channels, t_starts, t_ends = inputs(data, device)
    alphas, channels = alphas.requires_grad_(), channels.requires_grad_()
    with bounded():
        out = composite_alphas(
            alphas,
            channels,
            t_starts,
            t_ends,
            offsets_of(sizes, device),
            early_stop_eps=data.draw(st.sampled_from([0.0, 1e-4, 0.99])),
            return_weights=True,
            return_trans=True,
        )
        dtype = torch.float64 if alphas.dtype == torch.float64 else torch.float32
        assert_composite(out, len(sizes), sum(sizes), channels.shape[1], dtype, device)
        assert_finite_grads([o for o in out if o is not None and o.is_floating_point()], [alphas, channels])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("density", [float("nan"), -1.0, 0.0, 1e-3, 1e30, float("inf")])
def test_a_giant_ray(device: str, dtype: torch.dtype, density: float) -> None:
    n = 2**17 + 1
    densities = torch.full((n,), density).to(device, dtype).requires_grad_()
    channels = torch.ones(n, 3, device=device, dtype=dtype, requires_grad=True)
    t = torch.linspace(0, 1000, n + 1, device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    with bounded():
        options = {"return_weights": True, "return_trans": True, "return_alphas": True}
        out = composite(densities, channels, t[:-1], t[1:], offsets_of([0, n, 0], device), **options)
        assert_composite(out, 3, n, 3, t.dtype, device)
        assert_finite_grads([o for o in out if o is not None and o.is_floating_point()], [densities, channels])
