"""``rendering``: volume rendering of any radiance field in one call, for plain PyTorch loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.argument_types import typed_errors
from lightning_nerf.checks import BadArgument, check_same_device, check_tensor, needs_grad
from lightning_nerf.ops.composite import Composite, composite, composite_alphas
from lightning_nerf.ops.ray_offsets import ray_offsets
from lightning_nerf.ops.transforms import is_transformed

SampleFn = Callable[[Tensor, Tensor, Tensor | None], Any]
"""``fn(t_starts, t_ends, ray_indices)`` gives rgbs [..., C] and sigmas or alphas [...], and a dict of further channels."""

_OURS = ("weights", "trans", "alphas", "sigmas", "rgbs")


@typed_errors
def rendering(
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    rgb_sigma_fn: SampleFn | None = None,
    rgb_alpha_fn: SampleFn | None = None,
    render_bkgd: Tensor | None = None,
    expected_depths: bool = True,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Render rays from the colors and densities (or alphas) that a function gives for their samples.

    For sample i of a ray, from t_starts_i to t_ends_i, with delta_i its length and c_i its color:

        alpha_i = 1 - exp(-sigma_i delta_i),    T_i = exp(-sum over j < i of sigma_j delta_j),    w_i = T_i alpha_i
        color = sum w_i c_i + (1 - sum w_i) background,    opacity = sum w_i,    depth = sum w_i (middle of i) / opacity

    Samples are packed, ``[N]`` with the ray of each, or batched, ``[R, S]`` (any leading shape in place of R; ``[S]`` is a
    single ray). :func:`~lightning_nerf.ops.composite.composite` says what strange densities and intervals count as.

    Args:
        t_starts: [N] or [R, S], where samples begin, in units of the rays' directions.
        t_ends: like t_starts, where they end.
        ray_indices: [N] int64 or int32, never falling, in [0, n_rays); None: batched samples.
        n_rays: R, with ray_indices.
        rgb_sigma_fn: ``rgb_sigma_fn(t_starts, t_ends, ray_indices)`` gives colors [N, C] or [R, S, C] (any C), densities
            >= 0 of the samples' shape, per unit of t, and possibly a third item: a dict of further channels, name to [N, k]
            or [R, S, k]. It is called once, and not at all where there are no samples.
        rgb_alpha_fn: in its place, the same with opacities in [0, 1] for densities.
        render_bkgd: [C] or [R, C], what shines through; None: black. Further channels get none.
        expected_depths: divide the depth by the opacity (of at least float32's epsilon).

    Returns:
        ``(colors [R, C], opacities [R, 1], depths [R, 1], extras)``. ``extras`` holds, per sample, ``weights``, ``trans``
        and ``alphas``, the function's own ``rgbs`` and ``sigmas``, and per ray [R, k] each further channel under its name.
        float32, but float64 where t_starts, t_ends or a result of the function is (colors also where render_bkgd is).
        Without samples: the background and zeros, no further channels, and C is the background's, or 3.

    Differentiable, any number of times, in what the function returns, in render_bkgd and, where they require it, in
    t_starts and t_ends, through all outputs; an interval without length has no gradient. With ``create_graph=True`` and
    under ``torch.func`` the pure-torch reference computes, slowly. Where no ray has samples, ``backward`` of a loss works
    too and leaves the function's gradients as they are.

    Raises:
        BadArgument: an argument, or what the function returned, has a wrong shape, dtype or device, or not exactly one
            function is given.

    Source: Mildenhall et al., "NeRF: representing scenes as neural radiance fields", ECCV 2020, equation 3.

    >>> def fog(t_starts, t_ends, ray_indices):
    ...     return torch.tensor([0.2, 0.4, 0.8]).expand(*t_starts.shape, 3), torch.ones(t_starts.shape)
    >>> t = torch.linspace(0, 4, 65).expand(2, 65)  # two rays of 64 samples
    >>> colors, opacities, depths, extras = lightning_nerf.rendering(t[:, :-1], t[:, 1:], rgb_sigma_fn=fog)
    >>> colors
    tensor([[0.1963, 0.3927, 0.7853],
            [0.1963, 0.3927, 0.7853]])
    >>> extras["weights"].shape
    torch.Size([2, 64])
    """
    # One function of 70 lines: the host is what a plain loop waits for, and each call in here would be felt.
    if (rgb_sigma_fn is None) == (rgb_alpha_fn is None):
        raise BadArgument("rgb_sigma_fn, rgb_alpha_fn: expected exactly one of them")
    offsets, rays = layout(t_starts, t_ends, ray_indices, n_rays)
    if t_starts.numel() == 0:
        return _nothing(t_starts, t_ends, rays, render_bkgd, "sigmas" if rgb_alpha_fn is None else "alphas")
    name, function = ("rgb_sigma_fn", rgb_sigma_fn) if rgb_alpha_fn is None else ("rgb_alpha_fn", rgb_alpha_fn)
    assert function is not None
    rgbs, absorbers, further = _returned(name, function(t_starts, t_ends, ray_indices), t_starts)
    n_channels = rgbs.shape[-1]
    behind = None if render_bkgd is None else _background(render_bkgd, rays, n_channels, t_starts.device)
    flat, flat_absorbers, starts, ends = [rgbs, *further.values()], absorbers, t_starts, t_ends
    if t_starts.ndim > 1:
        flat = [c.reshape(t_starts.numel(), c.shape[-1]) for c in flat]
        flat_absorbers, starts, ends = absorbers.reshape(-1), t_starts.reshape(-1), t_ends.reshape(-1)
    dtype = _result_dtype(t_starts, t_ends, absorbers, *flat)
    if dtype is torch.float64:
        flat_absorbers, flat = flat_absorbers.double(), [c.double() for c in flat]
    starts, ends = starts.to(dtype), ends.to(dtype)
    intervals: dict[str, Any] = {"t_starts": starts, "t_ends": ends}
    transformed = is_transformed()
    learned = transformed or needs_grad(starts, ends)
    if learned:  # to the op they are constants
        flat.append(0.5 * (starts + ends)[:, None])
        if rgb_alpha_fn is None:
            flat_absorbers, intervals = in_unit_steps(flat_absorbers, starts, ends)
    # The op puts a background behind three channels, in the dtype of these.
    is_narrow = behind is None or behind.dtype is not torch.float64 or dtype is torch.float64
    inside = behind if n_channels == 3 and is_narrow else None
    out = (composite if rgb_alpha_fn is None else _composite_alphas)(
        flat_absorbers,
        flat[0] if len(flat) == 1 else torch.cat(flat, dim=1),
        offsets=offsets,
        **intervals,
        return_weights=True,
        return_trans=True,
        return_alphas=True,
        background=inside,
    )
    opacities = out.opacity[:, None]
    # No views where transforms do not need them: a caller may change colors in place, as NerfAcc's.
    split = out.channels.split if transformed else out.channels.unsafe_split_with_sizes
    colors, *integrals = split([c.shape[1] for c in flat], dim=1) if len(flat) > 1 else (out.channels,)
    depths = integrals.pop() if learned else out.depth[:, None]
    if behind is not None and inside is None:
        colors = colors + behind * (1 - opacities)
    if expected_depths:
        depths = depths / opacities.clamp_min(torch.finfo(torch.float32).eps)

    extras = {"weights": out.weights, "trans": out.trans, "alphas": out.alphas}
    extras = {key: value for key, value in extras.items() if value is not None} | dict(zip(further, integrals, strict=True))
    if ray_indices is None:  # packed ones have their shapes: each view takes a microsecond
        extras = {
            key: value.view(*(rays if key in further else t_starts.shape), *value.shape[1:])
            for key, value in extras.items()
        }
        colors, opacities, depths = (value.view(*rays, value.shape[1]) for value in (colors, opacities, depths))
    extras |= {"alphas" if rgb_sigma_fn is None else "sigmas": absorbers, "rgbs": rgbs}
    return colors, opacities, depths, extras


def layout(
    t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor | None, n_rays: int | None
) -> tuple[Tensor, tuple[int, ...]]:
    """Offsets [R + 1] int32 of packed or batched samples, and the shape of the rays."""
    if t_ends.shape != t_starts.shape:
        raise BadArgument(f"t_ends: expected the shape of t_starts, {list(t_starts.shape)}, got {list(t_ends.shape)}")
    for name, t in (("t_starts", t_starts), ("t_ends", t_ends)):
        if not t.is_floating_point():
            raise BadArgument(f"{name}: expected a floating-point tensor, got {t.dtype}")
    if ray_indices is not None:
        check_tensor("t_starts", t_starts, ("N",), t_starts.dtype)
        check_tensor("ray_indices", ray_indices, (t_starts.shape[0],), (torch.int64, torch.int32))
        check_same_device(t_starts=t_starts, t_ends=t_ends, ray_indices=ray_indices)
        if n_rays is None:
            raise BadArgument("n_rays: expected a number with ray_indices, got None")
        return ray_offsets(ray_indices, n_rays), (n_rays,)
    if t_starts.ndim == 0:
        raise BadArgument("t_starts: expected shape [N] or [..., S], got []")
    if t_starts.ndim == 1 and n_rays not in (None, 1):
        raise BadArgument(f"ray_indices: expected with {t_starts.shape[0]} samples of {n_rays} rays, got None")
    check_same_device(t_starts=t_starts, t_ends=t_ends)
    rays, length = tuple(t_starts.shape[:-1]), t_starts.shape[-1]
    if t_starts.numel() >= 2**31:
        raise BadArgument(f"t_starts: expected fewer than 2**31 samples, got {t_starts.numel()}")
    count = math.prod(rays)
    if length == 0:
        return torch.zeros(count + 1, dtype=torch.int32, device=t_starts.device), rays
    return torch.arange(0, count * length + 1, length, dtype=torch.int32, device=t_starts.device), rays


def _returned(name: str, result: Any, t_starts: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    if not isinstance(result, (tuple, list)) or len(result) not in (2, 3):
        raise BadArgument(f"{name}: expected it to return two or three things, got {type(result).__name__}")
    rgbs, absorbers = result[:2]
    further = dict(result[2]) if len(result) == 3 else {}
    shape = t_starts.shape
    for key, value in {"rgbs": rgbs, "sigmas or alphas": absorbers, **further}.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise BadArgument(f"{name}: expected {key} to be floating-point tensors, got {got}")
        if value.device != t_starts.device:
            raise BadArgument(f"{name}: expected {key} on {t_starts.device} (where t_starts is), got {value.device}")
    if absorbers.shape != shape:
        raise BadArgument(f"{name}: expected its second result to have shape {list(shape)}, got {list(absorbers.shape)}")
    for key, value in {"rgbs": rgbs, **further}.items():
        if value.ndim != len(shape) + 1 or value.shape[:-1] != shape:
            raise BadArgument(f"{name}: expected {key} of shape {[*shape, 'C']}, got {list(value.shape)}")
    clashes = [key for key in further if key in _OURS]
    if clashes:
        raise BadArgument(f"{name}: expected other names than {', '.join(_OURS)} for its channels, got {clashes[0]}")
    return rgbs, absorbers, further


def _background(render_bkgd: Tensor, rays: tuple[int, ...], n_channels: int, device: torch.device) -> Tensor:
    """[C] or [R, C]."""
    if not render_bkgd.is_floating_point():
        raise BadArgument(f"render_bkgd: expected a floating-point tensor, got {render_bkgd.dtype}")
    if render_bkgd.device != device:
        raise BadArgument(f"render_bkgd: expected a tensor on {device} (where t_starts is), got {render_bkgd.device}")
    if render_bkgd.shape == (n_channels,):
        return render_bkgd
    if render_bkgd.shape != (*rays, n_channels):
        expected = f"[{n_channels}] or {[*rays, n_channels]}"
        raise BadArgument(f"render_bkgd: expected shape {expected}, got {list(render_bkgd.shape)}")
    return render_bkgd.reshape(-1, n_channels)


def in_unit_steps(sigmas: Tensor, t_starts: Tensor, t_ends: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Samples [N] as steps of length 1, so that gradients reach their edges through what is then their density.

    Returns densities [N] and intervals for ``composite``, to which the same samples are void and opaque as before.
    """
    deltas = t_ends - t_starts
    void, opaque = ~((sigmas >= 0) & (deltas > 0)), sigmas == torch.inf
    odd = void | opaque  # masked before they are multiplied: their derivative would be 0 * inf
    densities = sigmas.masked_fill(odd, 0.0) * deltas.masked_fill(odd, 0.0)
    densities = densities.masked_fill(opaque, torch.inf).masked_fill(void, -1.0)
    places = (0.5 * (t_starts + t_ends)).detach()
    return densities, {"t_starts": None, "t_ends": None, "deltas": torch.ones_like(deltas), "ts": places}


def _composite_alphas(*args: Tensor, return_alphas: bool, **options: Any) -> Composite:
    return composite_alphas(*args, **options)


def _result_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in [t.dtype for t in tensors] else torch.float32


def _nothing(
    t_starts: Tensor, t_ends: Tensor, rays: tuple[int, ...], render_bkgd: Tensor | None, absorbers: str
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    dtype = _result_dtype(t_starts, t_ends)
    # A leaf of its own: a training loop may then call backward() in a step that hit nothing.
    zero = torch.zeros(*rays, 1, dtype=dtype, device=t_starts.device, requires_grad=torch.is_grad_enabled()).clone()
    if render_bkgd is None:
        colors = zero.expand(*rays, 3).clone()
    else:
        n_channels = render_bkgd.shape[-1] if render_bkgd.ndim > 0 else 1
        behind = _background(render_bkgd, rays, n_channels, t_starts.device)
        colors = (behind * (1 - zero.view(-1, 1))).view(*rays, n_channels)
    empty = t_starts.new_zeros(t_starts.shape, dtype=dtype)
    extras = {key: empty.clone() for key in ("weights", "trans", "alphas", absorbers)}
    extras["rgbs"] = empty.new_zeros(*t_starts.shape, colors.shape[-1])
    return colors, zero.clone(), zero.clone(), extras
