"""Volume rendering under NerfAcc's names, with its arguments, shapes and defaults; on CPU and CUDA.

Samples are packed, ``[N]`` with ``packed_info`` [R, 2] (where each ray's samples start and how many they are, one ray after
the other) or with ``ray_indices`` [N] (never falling) and ``n_rays``; or batched, ``[..., S]``. Everything is computed by
:mod:`lightning_nerf.ops.composite`: negative and NaN densities or alphas count as 0, alphas above 1 as 1, and an infinite
density is opaque. Results are float32, or float64 where an argument is.

A backward pass computes again from the arguments, so they must not be changed in place before it: torch raises an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.checks import check_same_device
from lightning_nerf.nerfacc._weights import check_broadcasts, from_alpha, from_density, visible
from lightning_nerf.nerfacc.accumulate import accumulate_along_rays, accumulate_along_rays_
from lightning_nerf.nerfacc.errors import argument_errors
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


@argument_errors
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
    """Render rays from the colors and densities (or alphas) that a function gives for their samples.

    This is :func:`lightning_nerf.rendering` with two of NerfAcc's habits: rgb_sigma_fn goes before rgb_alpha_fn where both
    are given, and render_bkgd may be anything that broadcasts with the colors.

    Args:
        t_starts: [N] packed or [..., S] batched, where samples begin, in units of the rays' directions.
        t_ends: like t_starts, where they end.
        ray_indices: [N] int64 or int32, never falling, in [0, n_rays). None: batched samples.
        n_rays: R, with ray_indices.
        rgb_sigma_fn: ``rgb_sigma_fn(t_starts, t_ends, ray_indices)`` gives colors [N, C] or [..., S, C] and densities of
            the samples' shape. It is not called where there are no samples.
        rgb_alpha_fn: in its place, the same with opacities in [0, 1] for densities.
        render_bkgd: what shines through, any shape that broadcasts with the colors; None: black.
        expected_depths: divide the depths by the opacities.

    Returns:
        ``(colors [R, C], opacities [R, 1], depths [R, 1], extras)``; extras hold ``weights``, ``trans``, ``alphas``,
        ``rgbs`` and, from densities, ``sigmas``, per sample.

    Differentiable, any number of times, in what the function returns, in render_bkgd, t_starts and t_ends.

    Raises:
        NerfAccArgument: an argument, or what the function returned, has a wrong shape, dtype or device.

    >>> t_starts, t_ends = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 2.0, 1.0])
    >>> colors, opacities, depths, extras = nerfacc.rendering(
    ...     t_starts,
    ...     t_ends,
    ...     ray_indices=torch.tensor([0, 0, 1]),
    ...     n_rays=2,
    ...     rgb_sigma_fn=lambda t_starts, t_ends, ray_indices: (torch.ones(3, 3), torch.tensor([1.0, 1.0, 0.0])),
    ... )
    >>> opacities
    tensor([[0.8647],
            [0.0000]])
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
            check_broadcasts("render_bkgd", render_bkgd, colors.shape)
        colors = colors + render_bkgd * (1 - opacities)
    return colors, opacities, depths, extras


def _is_plain(render_bkgd: Tensor, t_starts: Tensor, n_rays: int | None) -> bool:
    """A color, or one for each ray; more than one channel, since one may be meant for all."""
    rays = t_starts.shape[:-1] if t_starts.ndim > 1 else (n_rays,)
    per_ray = render_bkgd.shape[-1:] != (1,) and render_bkgd.shape[:-1] in ((), rays) and render_bkgd.ndim > 0
    return per_ray and render_bkgd.is_floating_point()


@argument_errors
def render_transmittance_from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> Tensor:
    """Transmittance in front of each sample: ``T_i = product over j < i of (1 - alpha_j)``.

    Args:
        alphas: [N] packed or [..., S] batched opacities, in [0, 1].
        packed_info: [R, 2] int64 or int32, start and count of each ray's samples.
        ray_indices: [N] int64 or int32, never falling, in place of packed_info.
        n_rays: R, with ray_indices; None: the last index and one more.
        prefix_trans: broadcasts with alphas; transmittance in front of the samples, by which T is multiplied.

    Returns:
        T, in the shape of alphas.

    Differentiable, any number of times, in alphas and prefix_trans; exact also where an alpha is 0 or 1.

    Raises:
        NerfAccArgument: an argument has a wrong shape, dtype or device.

    >>> alphas, ray_indices = torch.tensor([0.5, 0.5, 0.9, 0.1]), torch.tensor([0, 0, 0, 1])
    >>> nerfacc.render_transmittance_from_alpha(alphas, ray_indices=ray_indices)
    tensor([1.0000, 0.5000, 0.2500, 1.0000])
    """
    return from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans)[1]


@argument_errors
def render_transmittance_from_density(
    t_starts: Tensor | float,
    t_ends: Tensor | float,
    sigmas: Tensor | float,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Transmittance in front of each sample and its opacity.

    With delta_i = t_ends_i - t_starts_i:

        T_i = exp(-sum over j < i of sigma_j delta_j)
        alpha_i = 1 - exp(-sigma_i delta_i)

    Args, derivatives and errors are those of :func:`render_weight_from_density`.

    Returns:
        ``(T, alphas)``, in the shape that the first three arguments broadcast to.

    >>> t = torch.arange(4.0)
    >>> trans, alphas = nerfacc.render_transmittance_from_density(t[:-1], t[1:], torch.tensor([0.0, 1.0, 1.0]))
    >>> trans
    tensor([1.0000, 1.0000, 0.3679])
    >>> alphas
    tensor([0.0000, 0.6321, 0.6321])
    """
    return from_density((t_starts, t_ends, sigmas), packed_info, ray_indices, n_rays, prefix_trans)[1:]


@argument_errors
def render_weight_from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights ``w_i = T_i alpha_i`` of samples and the transmittance T in front of them.

    Args, derivatives and errors are those of :func:`render_transmittance_from_alpha`.

    Returns:
        ``(weights, T)``, in the shape of alphas.

    >>> weights, trans = nerfacc.render_weight_from_alpha(torch.tensor([[0.5, 0.5, 1.0]]))
    >>> weights
    tensor([[0.5000, 0.2500, 0.2500]])
    """
    weights, trans, _ = from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans)
    return weights, trans


@argument_errors
def render_weight_from_density(
    t_starts: Tensor | float,
    t_ends: Tensor | float,
    sigmas: Tensor | float,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of samples, the transmittance in front of them and their opacities.

    ``w_i = T_i alpha_i``, with T and alpha as in :func:`render_transmittance_from_density`; the weights sum to the opacity
    of a ray.

    Args:
        t_starts: where samples begin: [N] packed, [..., S] batched, or anything that broadcasts with sigmas.
        t_ends: likewise, where they end. A sample with ``t_end <= t_start`` counts as empty.
        sigmas: densities >= 0 per unit of t. Of the three arguments one at least must be a tensor.
        packed_info: [R, 2] int64 or int32, start and count of each ray's samples.
        ray_indices: [N] int64 or int32, never falling, in place of packed_info.
        n_rays: R, with ray_indices; None: the last index and one more.
        prefix_trans: broadcasts with sigmas; transmittance in front of the samples, by which T and w are multiplied.

    Returns:
        ``(weights, T, alphas)``, in the shape that the first three arguments broadcast to.

    Differentiable, any number of times, in all floating-point tensors.

    Raises:
        NerfAccArgument: an argument has a wrong shape, dtype or device.

    Source: Mildenhall et al., "NeRF: representing scenes as neural radiance fields", ECCV 2020, equation 3.

    >>> t = torch.arange(4.0)
    >>> weights, trans, alphas = nerfacc.render_weight_from_density(t[:-1], t[1:], torch.ones(2, 3))
    >>> weights
    tensor([[0.6321, 0.2325, 0.0855],
            [0.6321, 0.2325, 0.0855]])
    """
    return from_density((t_starts, t_ends, sigmas), packed_info, ray_indices, n_rays, prefix_trans)


@argument_errors
@torch.no_grad()
def render_visibility_from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    early_stop_eps: float | Tensor = 1e-4,
    alpha_thre: float | Tensor = 0.0,
    prefix_trans: Tensor | None = None,
) -> Tensor:
    """Which samples can be seen: those with ``T_i >= early_stop_eps`` and ``alpha_i >= alpha_thre``.

    Args, as in :func:`render_transmittance_from_alpha`, and:
        early_stop_eps: the least transmittance in front of a sample, a number or a tensor of one element.
        alpha_thre: the least opacity, likewise.

    Returns:
        bool, in the shape of alphas.

    >>> alphas = torch.tensor([0.5, 0.0, 0.9, 0.5])
    >>> nerfacc.render_visibility_from_alpha(alphas, early_stop_eps=0.1, alpha_thre=0.2)
    tensor([ True, False,  True, False])
    """
    trans = from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans)[1]
    return visible(trans, alphas, early_stop_eps, alpha_thre)


@argument_errors
@torch.no_grad()
def render_visibility_from_density(
    t_starts: Tensor | float,
    t_ends: Tensor | float,
    sigmas: Tensor | float,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    early_stop_eps: float | Tensor = 1e-4,
    alpha_thre: float | Tensor = 0.0,
    prefix_trans: Tensor | None = None,
) -> Tensor:
    """Which samples can be seen: those with ``T_i >= early_stop_eps`` and ``alpha_i >= alpha_thre``.

    Args, as in :func:`render_weight_from_density`, and:
        early_stop_eps: the least transmittance in front of a sample, a number or a tensor of one element.
        alpha_thre: the least opacity, likewise.

    Returns:
        bool, in the shape that the first three arguments broadcast to.

    >>> t = torch.arange(4.0)
    >>> nerfacc.render_visibility_from_density(t[:-1], t[1:], torch.tensor([9.0, 0.0, 9.0]), early_stop_eps=1e-3)
    tensor([ True, False, False])
    """
    _, trans, alphas = from_density((t_starts, t_ends, sigmas), packed_info, ray_indices, n_rays, prefix_trans)
    return visible(trans, alphas, early_stop_eps, alpha_thre)
