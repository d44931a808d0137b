"""Volume rendering of packed samples: one fused pass per ray, forward and backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_nerf.ops import _library
from lightning_nerf.ops._checks import check_same_device, check_tensor

MAX_CHANNELS = 32  # per call of the op; the public function takes more in passes
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_OPAQUE = 800.0  # exp(-800) is 0 in float64: a finite stand-in for infinite optical depth


class Composite(NamedTuple):
    """Per-ray integrals, float32 but for the count."""

    channels: Tensor  # [R, C] sum of weight * channel
    opacity: Tensor  # [R] sum of weights, in [0, 1]
    depth: Tensor  # [R] sum of weight * t_mid (not divided by the opacity), in units of t
    n_samples: Tensor  # [R] int32, samples composited before early termination
    weights: Tensor | None  # [N], None unless asked for
    transmittance: Tensor | None = None  # [N], None unless asked for


def composite(
    densities: Tensor,
    channels: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    *,
    early_stop_eps: float = 0.0,
    return_weights: bool = False,
    return_transmittance: bool = False,
    background: Tensor | None = None,
) -> Composite:
    """Integrate channels along rays through an absorbing and emitting medium, constant within each sample.

    Sample i of a ray spans ``delta_i = t_ends[i] - t_starts[i]`` with its middle at ``t_mid_i``. With

        T_i = exp(-sum over j < i of density_j delta_j)        transmittance in front of sample i (exclusive)
        w_i = T_i (1 - exp(-density_i delta_i))                its weight

    a ray's outputs are ``sum w_i channel_i``, ``sum w_i`` and ``sum w_i t_mid_i`` over the samples with
    ``T_i >= early_stop_eps``, of which there are ``n_samples``: a prefix of the ray, since T never rises. A
    background b shows through the first three channels: ``sum w_i channel_i + (1 - sum w_i) b``.

    Args:
        densities: [N] per unit of t. Infinite: alpha is exactly 1. Negative or NaN: counts as 0, its channels are ignored
            and both get gradient 0, so that neither light is created nor NaN spreads. An interval with
            ``t_end <= t_start`` is treated alike.
        channels: [N, C], colours or anything else; any C, 32 channels cost one pass.
        t_starts: [N] float32, finite.
        t_ends: [N] float32, finite.
        offsets: [R + 1] int32, CSR: ray r owns samples ``offsets[r]`` to ``offsets[r + 1]``; ``offsets[0] == 0``, never
            falling, ``offsets[R] <= N``. Not checked, which would synchronise.
        early_stop_eps: in [0, 1); 0 composites every sample.
        return_weights: also return w [N], 0 for samples that were not composited. Costs N floats.
        return_transmittance: also return T [N] in front of each sample, as 1 minus the weights before it: to an absolute
            error of 1e-7, constant where the ray has stopped, 0 past ``offsets[R]``.
        background: [3], or [R, 3] with one of its own for each ray; finite. Needs C >= 3. None: nothing is added.

    Returns:
        A :class:`Composite`. A ray without samples has zeros everywhere, or the background exactly; an opacity of 1 hides
        it exactly. Samples past ``offsets[R]`` have weight and gradients 0, whatever they hold.

    Differentiable (once) in densities, channels and background, through every floating-point output, and composited samples
    only: where the ray stops is a constant. t_starts and t_ends get no gradient (None), offsets can't have one. Second
    derivatives raise; :func:`reference` has them. Computed in float32, also under autocast; half-precision densities and
    channels are converted and get their gradients in their own dtype. Between forward and backward nothing of size N is
    kept but the inputs, and without gradients nothing of size N is allocated but weights that were asked for.

    Raises:
        ValueError: a tensor has the wrong shape, dtype or device, or early_stop_eps is out of range.

    Source: Max, "Optical models for direct volume rendering", TVCG 1995; Mildenhall et al., "NeRF: representing scenes as
    neural radiance fields for view synthesis", ECCV 2020, equation 3.
    """
    check_tensor("densities", densities, ("N",), _FLOATS)
    n = densities.shape[0]
    check_tensor("channels", channels, (n, "C"), _FLOATS)
    check_tensor("t_starts", t_starts, (n,), torch.float32)
    check_tensor("t_ends", t_ends, (n,), torch.float32)
    check_tensor("offsets", offsets, ("R + 1",), torch.int32)
    if offsets.shape[0] == 0:
        raise ValueError("offsets: expected shape [R + 1] with R >= 0, got [0]")
    if background is not None:
        check_tensor("background", background, (3,) if background.ndim == 1 else (offsets.shape[0] - 1, 3), _FLOATS)
        if channels.shape[1] < 3:
            raise ValueError(f"background: expected at least 3 channels in front of it, got {channels.shape[1]}")
        background = background.float().contiguous()
    check_same_device(
        densities=densities, channels=channels, t_starts=t_starts, t_ends=t_ends, offsets=offsets, background=background
    )
    check_early_stop_eps(early_stop_eps)

    density = densities.float().contiguous()
    intervals = t_starts.contiguous(), t_ends.contiguous(), offsets.contiguous()
    op = torch.ops.lightning_nerf.composite
    parts = [part.float().contiguous() for part in channels.split(MAX_CHANNELS, dim=1)]
    wanted = return_weights or return_transmittance
    out, opacity, depth, n_samples, weights = op(density, parts[0], *intervals, early_stop_eps, wanted, background)
    if len(parts) > 1:
        rest = (op(density, part, *intervals, early_stop_eps, False, None)[0] for part in parts[1:])
        out = torch.cat([out, *rest], dim=1)
    transmittance = _remaining_light(weights, intervals[2]) if return_transmittance else None
    return Composite(out, opacity, depth, n_samples, weights if return_weights else None, transmittance)


def _remaining_light(weights: Tensor, offsets: Tensor) -> Tensor:
    """T [N]: what the weights in front of a sample, within its ray, leave of the light."""
    owner = _owners(weights.shape[0], offsets)
    in_front = _exclusive_sum(weights.double(), owner, offsets)
    return torch.where(owner < offsets.shape[0] - 1, 1 - in_front, 0.0).to(weights.dtype)


def check_early_stop_eps(value: float) -> None:
    """A transmittance below 1: with 1 or more not even the first sample would be seen."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"early_stop_eps: expected a transmittance in [0, 1), got {value}")


def _owners(n: int, offsets: Tensor) -> Tensor:
    """The ray of each sample [N] int64; R for the tail."""
    return torch.searchsorted(
        offsets[1:].contiguous(), torch.arange(n, device=offsets.device, dtype=torch.int32), right=True
    )


def _exclusive_sum(values: Tensor, owner: Tensor, offsets: Tensor) -> Tensor:
    """Sum of the earlier values of the same ray."""
    before = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return before[:-1] - before[offsets.long()[owner]]


def _transmittance(densities: Tensor, delta: Tensor, owner: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    optical_depth = (densities * delta).clamp(max=_OPAQUE)
    return torch.exp(-_exclusive_sum(optical_depth, owner, offsets)), -torch.expm1(-optical_depth)


def _integrate(
    densities: Tensor,
    channels: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    early_stop_eps: float,
    n_samples: Tensor | None = None,
    background: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The definition, vectorised, in float64: a global cumulative sum in float32 cancels to 1e-4 over 10^5 samples."""
    n, n_rays = densities.shape[0], offsets.shape[0] - 1
    owner = _owners(n, offsets)
    t_starts, t_ends = t_starts.detach().double(), t_ends.detach().double()
    solid = (densities >= 0) & (t_ends > t_starts) & (owner < n_rays)  # False for NaN
    delta = torch.where(solid, t_ends - t_starts, 0.0)
    density = torch.where(solid, densities, 0.0).double()
    transmittance, alpha = _transmittance(density, delta, owner, offsets)
    if n_samples is None:
        stopped = (transmittance < early_stop_eps).long()
        used = (_exclusive_sum(stopped, owner, offsets) + stopped == 0) & (owner < n_rays)
        n_samples = torch.zeros(n_rays + 1, dtype=torch.int32, device=owner.device)
        n_samples = n_samples.index_add(0, owner, used.int())[:-1]
    else:
        rank = torch.arange(n, device=owner.device) - offsets.long()[owner]
        used = rank < torch.cat([n_samples, n_samples.new_zeros(1)])[owner]
    seen = solid & used
    weights = torch.where(seen, transmittance * alpha, 0.0)
    middle = torch.where(seen, 0.5 * (t_starts + t_ends), 0.0)
    values = torch.cat(
        [torch.where(seen[:, None], channels, 0.0), torch.ones_like(middle)[:, None], middle[:, None]], dim=1
    )
    sums = values.new_zeros(n_rays + 1, values.shape[1]).index_add(0, owner, weights[:, None] * values)[:-1]
    if background is not None:
        behind = (1 - sums[:, -2:-1]) * background.double()
        sums = torch.cat([sums[:, :3] + behind, sums[:, 3:]], dim=1)
    sums, weights = sums.to(densities.dtype), weights.to(densities.dtype)
    return sums[:, :-2].clone(), sums[:, -2].clone(), sums[:, -1].clone(), n_samples, weights


def reference(
    densities: Tensor,
    channels: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    early_stop_eps: float,
    return_weights: bool,
    background: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *sums, weights = _integrate(densities, channels, t_starts, t_ends, offsets, early_stop_eps, None, background)
    return (*sums, weights if return_weights else densities.new_empty(0))  # type: ignore[return-value]


def backward_reference(
    grad_channels_out: Tensor | None,
    grad_opacity: Tensor | None,
    grad_depth: Tensor | None,
    grad_weights: Tensor | None,
    densities: Tensor,
    channels: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    n_samples: Tensor,
    background: Tensor | None,
    channels_wanted: bool,
) -> tuple[Tensor, Tensor]:
    def outputs(densities: Tensor, channels: Tensor) -> tuple[Tensor, ...]:
        intervals = t_starts, t_ends, offsets
        out, opacity, depth, _, weights = _integrate(densities, channels, *intervals, 0.0, n_samples, background)
        return out, opacity, depth, weights

    # Not autograd.grad: below the dispatcher's autograd key it records nothing.
    values, pullback, *_ = torch.func.vjp(outputs, densities, channels)
    given = (grad_channels_out, grad_opacity, grad_depth, grad_weights)
    grads = pullback(tuple(torch.zeros_like(v) if g is None else g for v, g in zip(values, given, strict=True)))
    return grads[0], grads[1] if channels_wanted else channels.new_empty((0, channels.shape[1]))


def _fake(
    densities: Tensor,
    channels: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    early_stop_eps: float,
    return_weights: bool,
    background: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n_rays = offsets.shape[0] - 1
    return (
        densities.new_empty((n_rays, channels.shape[1])),
        densities.new_empty(n_rays),
        densities.new_empty(n_rays),
        offsets.new_empty(n_rays),
        densities.new_empty(densities.shape[0] if return_weights else 0),
    )


def _fake_backward(*args: Any) -> tuple[Tensor, Tensor]:
    densities, channels, channels_wanted = args[4], args[5], args[11]
    return torch.empty_like(densities), channels.new_empty(
        (densities.shape[0] if channels_wanted else 0, channels.shape[1])
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, ctx.return_weights, background = inputs
    learned = background is not None and background.requires_grad
    ctx.save_for_backward(*tensors, output[3], background, output[1] if learned else None)


def _backward(
    ctx: Any, channels: Tensor | None, opacity: Tensor | None, depth: Tensor | None, _: Any, weights: Tensor | None
) -> tuple[Tensor | None, ...]:
    given = [channels, opacity, depth, weights if ctx.return_weights else None]
    if all(g is None for g in given):
        return (None,) * 8
    *saved, background, rays_opacity = ctx.saved_tensors
    channels_wanted = ctx.needs_input_grad[1] and channels is not None
    cotangents = [None if g is None else g.contiguous() for g in given]
    grad_densities, grad_channels = torch.ops.lightning_nerf.composite_backward(
        *cotangents, *saved, background, channels_wanted
    )
    grad_background = None
    if rays_opacity is not None and channels is not None:
        grad_background = channels[:, :3] * (1 - rays_opacity)[:, None]
        grad_background = grad_background.sum(0) if background.ndim == 1 else grad_background
    return grad_densities, grad_channels if channels_wanted else None, *(None,) * 5, grad_background


_library.define(
    "composite",
    "(Tensor densities, Tensor channels, Tensor t_starts, Tensor t_ends, Tensor offsets, float early_stop_eps, "
    "bool return_weights, Tensor? background) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference,
    _fake,
)
_library.define(
    "composite_backward",
    "(Tensor? grad_channels_out, Tensor? grad_opacity, Tensor? grad_depth, Tensor? grad_weights, Tensor densities, "
    "Tensor channels, Tensor t_starts, Tensor t_ends, Tensor offsets, Tensor n_samples, Tensor? background, "
    "bool channels_wanted) -> (Tensor, Tensor)",
    backward_reference,
    _fake_backward,
)
_library.differentiable("composite", _setup_context, _backward)
_library.once_differentiable("composite_backward", "lightning_nerf.ops.composite.reference is differentiable twice")
