"""Rays, boxes and steps that go wrong where anything can."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.fuzz.strategies import INF, NAN, tensors

PLACES = (0.0, 0.5, -0.5, 0.999999, -3.0, 1.0, 1e-45, 1e6, NAN, INF)
WAYS = (0.0, -0.0, 1.0, -1.0, 0.3, 1e-30, 1e30, NAN, -INF)
LIMITS = (0.0, -1.0, 0.5, 1e6, 1e9, 1e10, 3e38, NAN, INF, -INF)
CENTERS = (0.0, 0.5, 1e6, -1e6)


@st.composite
def rays(draw: st.DrawFn, device: str, center: float) -> tuple[Tensor, Tensor]:
    """Origins and directions [R, 3]; R may be 0, some miss, some have no direction at all."""
    n = draw(st.integers(0, 4))
    origins = draw(tensors((n, 3), PLACES, device))
    if draw(st.booleans()):  # near the box, so that some hit it
        origins = origins + center
    return origins, draw(tensors((n, 3), WAYS, device))


@st.composite
def planes(draw: st.DrawFn, n: int, device: str) -> Tensor | None:
    return None if draw(st.booleans()) else draw(tensors((n,), LIMITS, device))


@st.composite
def steps(draw: st.DrawFn) -> dict[str, Any]:
    """Steps that give a box of size 2 few samples, or so many that they are refused; some below float spacing at 1e6."""
    return draw(
        st.sampled_from(
            [
                {"step_size": 0.01, "cone_angle": 0.0},
                {"step_size": 0.3, "cone_angle": 0.1},
                {"step_size": 1e-3, "cone_angle": 1e-2},
                {"step_size": 1e-3, "cone_angle": 1e30},
                {"step_size": 1e30, "cone_angle": 0.0},
                {"step_size": 3e38, "cone_angle": 3e38},
                {"step_size": 1e-2, "cone_angle": 1e-45},
                {"step_size": 1e-14, "cone_angle": 0.0},
                {"step_size": 1e-45, "cone_angle": 0.0},
            ]
        )
    )


def too_many(step_size: float, rays_d: Tensor) -> bool:
    """May a ray in a box of size 2 have more samples than a list can hold? One that stays where it is may, too."""
    return step_size < 1e-9 or bool((rays_d.abs() < 1e-5).all(dim=-1).any())


@st.composite
def binaries(draw: st.DrawFn, device: str, levels: int = 2) -> Tensor:
    """[L, X, Y, Z]: nothing, everything, or some cells."""
    shape = (draw(st.integers(1, levels)), *draw(st.sampled_from([(1, 1, 1), (2, 3, 1), (4, 4, 4)])))
    share = draw(st.sampled_from([0.0, 0.5, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 3)))
    return (torch.rand(shape, generator=generator) < share).to(device)


def box(center: float, half: float, device: str) -> Tensor:
    return torch.tensor([center - half] * 3 + [center + half] * 3, dtype=torch.float32, device=device)


def assert_samples(found: tuple[Tensor, Tensor, Tensor], n_rays: int, device: str) -> None:
    """Ray indices, begins and ends, in order."""
    ray_indices, t_starts, t_ends = found
    assert (ray_indices.dtype, t_starts.dtype, t_ends.dtype) == (torch.int64, torch.float32, torch.float32)
    assert ray_indices.shape == t_starts.shape == t_ends.shape == (len(ray_indices),)
    assert {t.device.type for t in found} == {device}
    assert t_starts.isfinite().all()
    assert t_ends.isfinite().all()
    assert (t_starts <= t_ends).all()
    if len(ray_indices):
        assert (ray_indices.diff() >= 0).all()
        assert 0 <= ray_indices.min() <= ray_indices.max() < n_rays
        assert ((ray_indices.diff() > 0) | (t_starts.diff() >= 0)).all()
