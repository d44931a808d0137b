"""Volume rendering under NerfAcc's names, with its arguments, shapes and defaults; on CPU and CUDA.

Samples are packed, ``[N]`` with ``packed_info`` [R, 2] (where each ray's samples start and how many they are, one ray after
the other) or with ``ray_indices`` [N] (never falling) and ``n_rays``; or batched, ``[..., S]``. Everything is computed by
:mod:`lightning_nerf.ops.composite`, so that negative and NaN densities or alphas count as 0, alphas above 1 as 1, and an
infinite density is opaque. float32, but float64 where the input is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.argument_types import names_types
from lightning_nerf.checks import FLOATS, BadArgument, check_ray_indices, check_same_device, check_tensor, needs_grad
from lightning_nerf.nerfacc._rays import in_range
from lightning_nerf.ops.composite import Composite, composite, composite_alphas
from lightning_nerf.ops.ray_offsets import ray_offsets
from lightning_nerf.renderers.rendering import in_unit_steps
from lightning_nerf.renderers.rendering import rendering as _rendering

__all__ = [
    "accumulate_along_rays",
    "accumulate_along_rays_",
    "render_transmittance_from_alpha",
    "render_transmittance_from_density",
    "render_visibility_from_alpha",
    "render_visibility_from_density",
    "render_weight_from_alpha",
    "render_weight_from_density",
    "rendering",
]

_INDICES = (torch.int64, torch.int32)


@names_types
def rendering(
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    rgb_sigma_fn: Callable[..., Any] | None = None,
    rgb_alpha_fn: Callable[..., Any] | None = None,
    render_bkgd: Tensor | None = None,
    expected_depths: bool = True,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Colours [R, C], opacities [R, 1], depths [R, 1] and extras; see :func:`lightning_nerf.rendering`.

    As in NerfAcc, rgb_sigma_fn goes before rgb_alpha_fn where both are given, and render_bkgd may be anything that
    broadcasts with the colours.
    """
    inside = render_bkgd if isinstance(render_bkgd, Tensor) and _is_plain(render_bkgd, t_starts, n_rays) else None
    colors, opacities, depths, extras = _rendering(
        t_starts,
        t_ends,
        ray_indices,
        n_rays,
        rgb_sigma_fn,
        None if rgb_sigma_fn is not None else rgb_alpha_fn,
        inside,
        expected_depths,
    )
    if render_bkgd is not None and inside is None:
        if isinstance(render_bkgd, Tensor):
            check_same_device(t_starts=t_starts, render_bkgd=render_bkgd)
            _check_broadcasts("render_bkgd", render_bkgd, colors.shape)
        colors = colors + render_bkgd * (1 - opacities)
    return colors, opacities, depths, extras


def _is_plain(render_bkgd: Tensor, t_starts: Tensor, n_rays: int | None) -> bool:
    """A colour, or one for each ray; more than one channel, since one may be meant for all."""
    rays = t_starts.shape[:-1] if t_starts.ndim > 1 else (n_rays,)
    per_ray = render_bkgd.shape[-1:] != (1,) and render_bkgd.shape[:-1] in ((), rays) and render_bkgd.ndim > 0
    return per_ray and render_bkgd.is_floating_point()


@names_types
def render_transmittance_from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> Tensor:
    """``T_i``, the product of ``1 - alpha_j`` over the earlier samples of the ray, times ``prefix_trans``; like alphas.

    Its gradient is exact, also where an alpha is 0 or 1.
    """
    return render_weight_from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans)[1]


@names_types
def render_transmittance_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``T_i`` and ``alpha_i = 1 - exp(-sigma_i (t_end_i - t_start_i))``; both like sigmas."""
    return render_weight_from_density(t_starts, t_ends, sigmas, packed_info, ray_indices, n_rays, prefix_trans)[1:]


@names_types
def render_weight_from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights ``T_i alpha_i`` and ``T_i``; both like alphas, differentiable in alphas and prefix_trans."""
    _check_samples("alphas", alphas, packed_info, ray_indices, prefix_trans)
    offsets = _offsets(alphas, packed_info, ray_indices, n_rays)
    flat = alphas.reshape(-1)
    out = composite_alphas(
        flat, flat.new_empty(len(flat), 0), None, None, offsets, ts=_places(flat), return_weights=True, return_trans=True
    )
    weights, trans, _ = _with_prefix(out, alphas.shape, prefix_trans)
    return weights, trans


@names_types
def render_weight_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights ``T_i alpha_i``, ``T_i`` and ``alpha_i``; like sigmas, differentiable in all floating-point arguments."""
    for name, t in (("t_starts", t_starts), ("t_ends", t_ends)):
        if t.shape != sigmas.shape:
            raise BadArgument(f"{name}: expected the shape of sigmas, {list(sigmas.shape)}, got {list(t.shape)}")
        if t.is_complex():
            raise BadArgument(f"{name}: expected real numbers, got {t.dtype}")
    _check_samples("sigmas", sigmas, packed_info, ray_indices, prefix_trans)
    check_same_device(sigmas=sigmas, t_starts=t_starts, t_ends=t_ends)
    offsets = _offsets(sigmas, packed_info, ray_indices, n_rays)
    flat, dtype = sigmas.reshape(-1), torch.float64 if sigmas.dtype is torch.float64 else torch.float32
    starts, ends = t_starts.reshape(-1).to(dtype), t_ends.reshape(-1).to(dtype)
    intervals: dict[str, Any] = {"t_starts": starts, "t_ends": ends}
    if needs_grad(starts, ends):
        flat, intervals = in_unit_steps(flat, starts, ends)
    out = composite(
        flat,
        flat.new_empty(len(flat), 0),
        offsets=offsets,
        **intervals,
        return_weights=True,
        return_trans=True,
        return_alphas=True,
    )
    weights, trans, alphas = _with_prefix(out, sigmas.shape, prefix_trans)
    assert alphas is not None
    return weights, trans, alphas


@names_types
@torch.no_grad()
def render_visibility_from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    early_stop_eps: float = 1e-4,
    alpha_thre: float = 0.0,
    prefix_trans: Tensor | None = None,
) -> Tensor:
    """Where ``T_i >= early_stop_eps`` and ``alpha_i >= alpha_thre``: bool, like alphas."""
    trans = render_transmittance_from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans)
    return _visible(trans, alphas, early_stop_eps, alpha_thre)


@names_types
@torch.no_grad()
def render_visibility_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    early_stop_eps: float = 1e-4,
    alpha_thre: float = 0.0,
    prefix_trans: Tensor | None = None,
) -> Tensor:
    """Where ``T_i >= early_stop_eps`` and ``alpha_i >= alpha_thre``: bool, like sigmas."""
    rays = packed_info, ray_indices, n_rays, prefix_trans
    trans, alphas = render_transmittance_from_density(t_starts, t_ends, sigmas, *rays)
    return _visible(trans, alphas, early_stop_eps, alpha_thre)


@names_types
def accumulate_along_rays(
    weights: Tensor, values: Tensor | None = None, ray_indices: Tensor | None = None, n_rays: int | None = None
) -> Tensor:
    """Sums of ``weights * values`` over each ray's samples, [R, D]; of the weights alone, [R, 1], without values.

    Packed: weights [N], values [N, D], ray_indices [N] in any order, n_rays. Batched: weights [..., S], values [..., S, D],
    result [..., D]. Differentiable in weights and values. An index that is no ray's is an error on a CPU; on CUDA, where
    looking would synchronise, its sample is left out.
    """
    source = _weighted(weights, values)
    if ray_indices is None:
        return source.sum(dim=-2)
    if n_rays is None:
        raise BadArgument("n_rays: expected a number with ray_indices, got None")
    _check_packed(weights, ray_indices)
    check_ray_indices(ray_indices, n_rays)
    return source.new_zeros(n_rays, source.shape[-1]).index_add(0, *in_range(ray_indices, n_rays, source))


@names_types
def accumulate_along_rays_(
    weights: Tensor, values: Tensor | None = None, ray_indices: Tensor | None = None, outputs: Tensor | None = None
) -> None:
    """:func:`accumulate_along_rays`, added to ``outputs`` [R, D] in place."""
    source = _weighted(weights, values)
    if outputs is None:
        raise BadArgument("outputs: expected a tensor, got None")
    check_same_device(weights=weights, outputs=outputs)
    if ray_indices is None:
        check_tensor("outputs", outputs, (*source.shape[:-2], source.shape[-1]), FLOATS)
        outputs.add_(source.sum(dim=-2))
        return
    _check_packed(weights, ray_indices)
    check_tensor("outputs", outputs, ("R", source.shape[-1]), FLOATS)
    if len(outputs) == 0 and len(ray_indices) > 0:
        raise BadArgument(f"outputs: expected a row for each ray of {len(ray_indices)} samples, got none")
    check_ray_indices(ray_indices, len(outputs))
    outputs.index_add_(0, *in_range(ray_indices, len(outputs), source.to(outputs.dtype)))


def _check_samples(
    name: str, absorbers: Tensor, packed_info: Tensor | None, ray_indices: Tensor | None, prefix_trans: Tensor | None
) -> None:
    if absorbers.dtype not in FLOATS or absorbers.ndim == 0:
        got = f"{absorbers.dtype} of {list(absorbers.shape)}"
        raise BadArgument(f"{name}: expected floats of shape [..., S], or [N] with packed_info or ray_indices, got {got}")
    if absorbers.numel() >= 2**31:
        raise BadArgument(f"{name}: expected fewer than 2**31 samples, got {absorbers.numel()}")
    check_same_device(**{name: absorbers}, packed_info=packed_info, ray_indices=ray_indices, prefix_trans=prefix_trans)
    if prefix_trans is not None:
        _check_broadcasts("prefix_trans", prefix_trans, absorbers.shape)


def _check_broadcasts(name: str, value: Tensor, shape: torch.Size) -> None:
    sizes = value.shape
    fits = len(sizes) <= len(shape) and all(a in (1, b) for a, b in zip(reversed(sizes), reversed(shape), strict=False))
    if not fits or value.is_complex():
        got = f"{value.dtype} of {list(sizes)}"
        raise BadArgument(f"{name}: expected real numbers that broadcast to {list(shape)}, got {got}")


def _offsets(absorbers: Tensor, packed_info: Tensor | None, ray_indices: Tensor | None, n_rays: int | None) -> Tensor:
    """CSR offsets [R + 1] int32."""
    if packed_info is None and ray_indices is None:
        length = absorbers.shape[-1]
        n = absorbers.numel() // length if length else 0
        return torch.arange(n + 1, dtype=torch.int32, device=absorbers.device) * length
    if absorbers.ndim != 1:
        raise BadArgument(f"expected samples of shape [N] with packed_info or ray_indices, got {list(absorbers.shape)}")
    n = absorbers.shape[0]
    if packed_info is None:
        assert ray_indices is not None
        check_tensor("ray_indices", ray_indices, (n,), _INDICES)
        if n_rays is None:
            n_rays = int(ray_indices[-1]) + 1 if n > 0 else 0
        return ray_offsets(ray_indices, n_rays)
    check_tensor("packed_info", packed_info, ("R", 2), _INDICES)
    starts, ends = packed_info[:, 0], packed_info.sum(dim=1)
    offsets = torch.cat([starts.new_zeros(1), ends]).to(torch.int32)
    looked_at = packed_info.device.type == "cpu" and not torch.compiler.is_compiling()
    if looked_at and not (torch.equal(starts.int(), offsets[:-1]) and (packed_info >= 0).all() and offsets[-1] <= n):
        raise BadArgument(f"packed_info: expected rays that follow one another within {n} samples, as pack_info gives them")
    return offsets


def _places(absorbers: Tensor) -> Tensor:
    """Places that nobody asks for: any finite floats of the right type. A gradient of zero is multiplied by them."""
    return torch.zeros_like(absorbers, dtype=torch.float64 if absorbers.dtype is torch.float64 else torch.float32)


def _with_prefix(out: Composite, shape: torch.Size, prefix_trans: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    assert out.weights is not None
    assert out.trans is not None
    weights, trans = out.weights.view(shape), out.trans.view(shape)
    if prefix_trans is not None:
        weights, trans = weights * prefix_trans, trans * prefix_trans
    return weights, trans, None if out.alphas is None else out.alphas.view(shape)


def _visible(trans: Tensor, alphas: Tensor, early_stop_eps: float, alpha_thre: float) -> Tensor:
    visible = trans >= early_stop_eps
    return visible & (alphas >= alpha_thre) if alpha_thre > 0 else visible


def _weighted(weights: Tensor, values: Tensor | None) -> Tensor:
    if weights.ndim == 0 or weights.is_complex():
        raise BadArgument(f"weights: expected real numbers [N] or [..., S], got {weights.dtype} of {list(weights.shape)}")
    if values is None:
        return weights[..., None]
    check_same_device(weights=weights, values=values)
    if values.is_complex():
        raise BadArgument(f"values: expected real numbers, got {values.dtype}")
    if values.shape[:-1] != weights.shape or values.ndim != weights.ndim + 1:
        raise BadArgument(f"values: expected shape {[*weights.shape, 'D']}, got {list(values.shape)}")
    return weights[..., None] * values


def _check_packed(weights: Tensor, ray_indices: Tensor) -> None:
    check_tensor("weights", weights, ("N",), weights.dtype)
    check_tensor("ray_indices", ray_indices, (weights.shape[0],), _INDICES)
    check_same_device(weights=weights, ray_indices=ray_indices)
