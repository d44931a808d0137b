"""What the kernels of :mod:`lightning_nerf.ops.instant_ngp` compute, op by op."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nerf.ops import hash_grid
from lightning_nerf.ops import spherical_harmonics as harmonics
from lightning_nerf.ops.composite_reference import reference as composite_reference
from lightning_nerf.ops.sample_points import sample_points
from lightning_nerf.ops.visibility import ALL, _visible
from lightning_nerf.scene_box import CONTRACTIONS
from lightning_nerf.types import PackedSamples, Rays

ENCODED = 32
SHAPES = {"density1": (64, 32), "density2": (16, 64), "color1": (64, 32), "color2": (64, 64), "color3": (3, 64)}
_LARGEST_LOG_DENSITY = 15.0
_SATURATED, _WAY_BACK = 6.1441368e-6, 0.006648056671  # the derivatives of the sigmoid at 12 and at 5


class Weights(NamedTuple):
    """The layers' weights, [outputs, inputs] float32; color inputs are 16 harmonics, then 16 geometry features."""

    density1: Tensor  # [64, 32]
    density2: Tensor  # [16, 64]
    color1: Tensor  # [64, 32]
    color2: Tensor  # [64, 64]
    color3: Tensor  # [3, 64]


def _exp(x: Tensor) -> Tensor:
    """exp with the derivative of exp(clamp(x, -15, 15)); stated here, because fields' activations lie above this layer.

    For finite x. No autograd.Function: torch 2.11 may fail to find one's kernel inside a function transform.
    """
    slope = x.detach().clamp(-_LARGEST_LOG_DENSITY, _LARGEST_LOG_DENSITY).exp()
    return x.detach().exp() + (x - x.detach()) * slope


def _round(x: Tensor, bfloat16: bool) -> Tensor:
    return x.to(torch.bfloat16 if bfloat16 else torch.float16).to(x.dtype)


def _linear(x: Tensor, weight: Tensor, bfloat16: bool) -> Tensor:
    return _round(x, bfloat16) @ _round(weight, bfloat16).T


def _perceptrons(
    encoded: Tensor, directions: Tensor | None, inside: Tensor, weights: Weights, density_bias: float, bfloat16: bool
) -> tuple[Tensor, Tensor]:
    """Density [N] and the colors' logits [N, 3]."""
    geometry = _linear(_linear(encoded, weights.density1, bfloat16).relu(), weights.density2, bfloat16)
    density = torch.where(inside, _exp(geometry[:, 0] + density_bias), 0.0)
    if directions is None:
        return density, density.new_empty(0, 3)
    shown = torch.cat([harmonics.reference(directions, 4), geometry], dim=1)
    hidden = _linear(_linear(shown, weights.color1, bfloat16).relu(), weights.color2, bfloat16).relu()
    return density, _linear(hidden, weights.color3, bfloat16)


def _logit_gradient(rgb: Tensor, grad_rgb: Tensor) -> Tensor:
    """What fields' ``leaky_sigmoid`` passes back, which lies above this layer: a saturated logit can return."""
    slope = rgb * (1 - rgb)
    returns = grad_rgb * (rgb - 0.5) > 0
    return grad_rgb * torch.where(returns & (slope < _SATURATED), _WAY_BACK, slope)


def _inside(positions: Tensor) -> Tensor:
    return ((positions >= 0) & (positions <= 1)).all(-1)


def field_reference(
    positions: Tensor,
    directions: Tensor | None,
    table: Tensor,
    working: Tensor,
    levels: Tensor,
    encoded: Tensor | None,
    sources: Tensor | None,
    density1: Tensor,
    density2: Tensor,
    color1: Tensor,
    color2: Tensor,
    color3: Tensor,
    density_bias: float,
    bfloat16: bool,
    keep_features: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = Weights(density1, density2, color1, color2, color3)
    if encoded is None:
        features = hash_grid.reference(positions, working.to(table.dtype), levels)
    else:
        features = (encoded if sources is None else encoded[sources.long()]).to(table.dtype)
    density, logits = _perceptrons(features, directions, _inside(positions), weights, density_bias, bfloat16)
    kept = features if keep_features else features[:0]
    return density, logits.sigmoid(), kept.to(torch.bfloat16 if bfloat16 else torch.float16)


def field_backward_reference(
    grad_density: Tensor | None,
    grad_rgb: Tensor | None,
    positions: Tensor,
    directions: Tensor | None,
    features: Tensor,
    sources: Tensor | None,
    density1: Tensor,
    density2: Tensor,
    color1: Tensor,
    color2: Tensor,
    color3: Tensor,
    density_bias: float,
) -> tuple[Tensor, Tensor]:
    inside = _inside(positions)
    encoded = (features if sources is None else features[sources.long()]).to(density1.dtype)
    bfloat16 = features.dtype == torch.bfloat16

    def forward(encoded: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return _perceptrons(encoded, directions, inside, Weights(*weights), density_bias, bfloat16)

    pair = torch.func.vjp(forward, encoded, density1, density2, color1, color2, color3)
    (density, logits), pullback = pair[0], pair[1]
    given = (
        torch.zeros_like(density) if grad_density is None else grad_density,
        torch.zeros_like(logits) if grad_rgb is None else _logit_gradient(logits.sigmoid(), grad_rgb),
    )
    grad_encoded, *grad_weights = pullback(given)
    return grad_encoded.to(features.dtype), torch.cat([g.flatten() for g in grad_weights])


def ray_densities_reference(
    origins: Tensor,
    directions: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    working: Tensor,
    levels: Tensor,
    density1: Tensor,
    density2: Tensor,
    to_unit: Tensor,
    density_bias: float,
    early_stop_eps: float,
    bfloat16: bool,
    keep_features: bool,
    contraction: int = 0,
) -> tuple[Tensor, Tensor]:
    unit = _points(origins, directions, t_starts, t_ends, offsets, to_unit, contraction)[0]
    features = hash_grid.reference(unit, working.to(density1.dtype), levels)
    geometry = _linear(_linear(features, density1, bfloat16).relu(), density2, bfloat16)
    densities = torch.where(_inside(unit), (geometry[:, 0] + density_bias).exp(), 0.0)
    in_tail = torch.arange(len(densities), device=densities.device) >= offsets[-1]
    kept = features if keep_features else features[:0]
    return densities.masked_fill(in_tail, 0.0), kept.to(torch.bfloat16 if bfloat16 else torch.float16)


def render_reference(
    origins: Tensor,
    directions: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    working: Tensor,
    levels: Tensor,
    density1: Tensor,
    density2: Tensor,
    color1: Tensor,
    color2: Tensor,
    color3: Tensor,
    to_unit: Tensor,
    density_bias: float,
    early_stop_eps: float,
    alpha_thre: Tensor,
    bfloat16: bool,
    contraction: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    unit, seen_along = _points(origins, directions, t_starts, t_ends, offsets, to_unit, contraction)
    weights = (density1, density2, color1, color2, color3)
    density, rgb, _ = field_reference(
        unit, seen_along, working.float(), working, levels, None, None, *weights, density_bias, bfloat16, False
    )
    visible = torch.zeros_like(density, dtype=torch.bool)
    visible[_visible(density, t_starts, t_ends, offsets, early_stop_eps, alpha_thre, *ALL)[0]] = True
    sums = composite_reference(torch.where(visible, density, 0.0), rgb, t_starts, t_ends, offsets)
    owner = torch.searchsorted(offsets[1:].contiguous(), torch.arange(len(density), device=offsets.device), right=True)
    count = torch.zeros(len(offsets), dtype=torch.int32, device=offsets.device)
    count = count.index_add(0, owner.clamp(max=len(offsets) - 1), visible.int())[:-1]
    return sums[0], sums[1], sums[2], count


def _points(
    origins: Tensor,
    directions: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    to_unit: Tensor,
    contraction: int,
) -> tuple[Tensor, Tensor]:
    n, n_rays = len(t_starts), len(origins)
    owner = torch.searchsorted(offsets[1:].contiguous(), torch.arange(n, device=offsets.device), right=True)
    ray_indices = torch.where(owner < n_rays, owner, 0).to(torch.int32)
    nothing = origins.new_zeros(n_rays)
    kept = torch.ones(n_rays, dtype=torch.bool, device=origins.device)
    rays = Rays(origins, directions, nothing, nothing)
    samples = PackedSamples(t_starts, t_ends, ray_indices, offsets, kept)
    unit, seen_along, _ = sample_points(rays, samples, to_unit=to_unit, contraction=CONTRACTIONS[contraction])
    return unit, seen_along
