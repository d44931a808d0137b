"""Weights, transmittance and opacities of samples, by one call of an op for all functions that return some of them."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.checks import FLOATS, BadArgument, BadType, check_same_device, check_tensor, needs_grad
from lightning_nerf.ops.composite import Composite, composite, composite_alphas
from lightning_nerf.ops.ray_offsets import ray_offsets
from lightning_nerf.ops.transforms import is_transformed
from lightning_nerf.renderers.rendering import in_unit_steps

_INDICES = (torch.int64, torch.int32)
_DENSITY = ("t_starts", "t_ends", "sigmas")


def from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None,
    ray_indices: Tensor | None,
    n_rays: int | None,
    prefix_trans: Tensor | None,
) -> tuple[Tensor, Tensor, None]:
    """Weights and transmittance, in the shape of alphas."""
    _check_samples("alphas", alphas, packed_info, ray_indices, prefix_trans)
    offsets = _offsets(alphas, packed_info, ray_indices, n_rays)
    flat = alphas.reshape(-1) if alphas.ndim > 1 else alphas
    out = composite_alphas(
        flat, flat.new_empty(len(flat), 0), None, None, offsets, ts=_places(flat), return_weights=True, return_trans=True
    )
    weights, trans, _ = _with_prefix(out, alphas.shape, prefix_trans)
    return weights, trans, None


def from_density(
    samples: tuple[Tensor | float, Tensor | float, Tensor | float],
    packed_info: Tensor | None,
    ray_indices: Tensor | None,
    n_rays: int | None,
    prefix_trans: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, transmittance and opacities, in the shape that t_starts, t_ends and sigmas broadcast to."""
    t_starts, t_ends, sigmas = _broadcast(samples)
    for name, t in (("t_starts", t_starts), ("t_ends", t_ends)):
        if t.is_complex():
            raise BadArgument(f"{name}: expected real numbers, got {t.dtype}")
    _check_samples("sigmas", sigmas, packed_info, ray_indices, prefix_trans)
    check_same_device(sigmas=sigmas, t_starts=t_starts, t_ends=t_ends)
    offsets = _offsets(sigmas, packed_info, ray_indices, n_rays)
    double = torch.float64 in (sigmas.dtype, t_starts.dtype, t_ends.dtype)
    dtype = torch.float64 if double else torch.float32
    flat, starts, ends = sigmas, t_starts.to(dtype), t_ends.to(dtype)
    if sigmas.ndim > 1:  # else each would be a view, which takes the host a microsecond
        flat, starts, ends = flat.reshape(-1), starts.reshape(-1), ends.reshape(-1)
    flat = flat.double() if double else flat
    intervals: dict[str, Any] = {"t_starts": starts, "t_ends": ends}
    if needs_grad(starts, ends) or is_transformed():
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


def visible(trans: Tensor, alphas: Tensor, early_stop_eps: float | Tensor, alpha_thre: float | Tensor) -> Tensor:
    """Where both are at least their thresholds."""
    alpha_thre = as_number("alpha_thre", alpha_thre)
    seen = trans >= early_stop_eps
    return seen & (alphas >= alpha_thre) if alpha_thre > 0 else seen


def as_number(name: str, value: float | Tensor) -> float:
    """The number that a tensor of one element holds; the host waits for it."""
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1:
        raise BadArgument(f"{name}: expected a number or a tensor of one element, got {list(value.shape)}")
    return value.item()


def check_broadcasts(name: str, value: Tensor, shape: torch.Size) -> None:
    """Real numbers in a shape that broadcasts to this one."""
    sizes = value.shape
    fits = len(sizes) <= len(shape) and all(a in (1, b) for a, b in zip(reversed(sizes), reversed(shape), strict=False))
    if not fits or value.is_complex():
        got = f"{value.dtype} of {list(sizes)}"
        raise BadArgument(f"{name}: expected real numbers that broadcast to {list(shape)}, got {got}")


def _broadcast(samples: tuple[Tensor | float, Tensor | float, Tensor | float]) -> tuple[Tensor, Tensor, Tensor]:
    """t_starts, t_ends and sigmas in one shape, as ``sigmas * (t_ends - t_starts)`` would bring them."""
    t_starts, t_ends, sigmas = samples
    if (
        isinstance(t_starts, Tensor)
        and isinstance(t_ends, Tensor)
        and isinstance(sigmas, Tensor)
        and t_starts.shape == t_ends.shape == sigmas.shape
    ):
        return t_starts, t_ends, sigmas
    tensors = [value for value in samples if isinstance(value, Tensor)]
    for name, value in zip(_DENSITY, samples, strict=True):
        if not isinstance(value, Tensor) and (not isinstance(value, numbers.Real) or not tensors):
            expected = "a tensor or a number" if tensors else "a tensor beside two numbers"
            raise BadType(f"{name}: expected {expected}, got {type(value).__name__}")
    dtype = torch.float64 if any(t.dtype is torch.float64 for t in tensors) else torch.float32
    device = max(tensors, key=lambda t: t.ndim).device
    # A number, or a tensor that is one, may be on the host, as in torch's arithmetic.
    values = {
        name: torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else dtype, device=device)
        if not isinstance(value, Tensor) or (value.ndim == 0 and value.device.type == "cpu")
        else value
        for name, value in zip(_DENSITY, samples, strict=True)
    }
    shape = values["sigmas"].shape
    for name in ("t_starts", "t_ends"):
        try:
            shape = torch.broadcast_shapes(shape, values[name].shape)
        except RuntimeError:
            got = f"got {list(values[name].shape)}, which does not broadcast with it"
            raise BadArgument(f"{name}: expected the shape of sigmas, {list(values['sigmas'].shape)}, {got}") from None
    t_starts, t_ends, sigmas = (values[name].expand(shape) for name in _DENSITY)
    return t_starts, t_ends, sigmas


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
        check_broadcasts("prefix_trans", prefix_trans, absorbers.shape)


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
    """Places whose value is never used: any finite floats of the right type. A gradient of zero is multiplied by them."""
    return torch.zeros_like(absorbers, dtype=torch.float64 if absorbers.dtype is torch.float64 else torch.float32)


def _with_prefix(out: Composite, shape: torch.Size, prefix_trans: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    assert out.weights is not None
    assert out.trans is not None
    weights, trans, alphas = out.weights, out.trans, out.alphas
    if len(shape) > 1:
        weights, trans = weights.view(shape), trans.view(shape)
        alphas = None if alphas is None else alphas.view(shape)
    if prefix_trans is not None:
        prefix_trans = prefix_trans.to(trans.dtype)
        weights, trans = weights * prefix_trans, trans * prefix_trans
    return weights, trans, alphas
