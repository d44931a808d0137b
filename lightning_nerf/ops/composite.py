"""Volume rendering of packed samples: one fused pass per ray, forward and backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_nerf.checks import FLOATS, BadArgument, check_same_device, check_tensor
from lightning_nerf.ops import library
from lightning_nerf.ops.composite_reference import backward_reference, integrate, reference
from lightning_nerf.ops.library import Context, Inputs
from lightning_nerf.ops.transforms import is_transformed

MAX_CHANNELS = 32  # per call of the op; the public functions take more in passes
_HALVES = (torch.bfloat16, torch.float16)


class Composite(NamedTuple):
    """Integrals per ray and values per sample, float32 (float64 from float64 inputs) but for the count."""

    channels: Tensor  # [R, C] sum of weight * channel
    opacity: Tensor  # [R] sum of weights, in [0, 1]
    depth: Tensor  # [R] sum of weight * t_mid (not divided by the opacity), in units of t
    n_samples: Tensor  # [R] int32, samples composited before early termination
    weights: Tensor | None  # [N] w_i; this and what follows is None unless asked for
    trans: Tensor | None = None  # [N] T_i
    alphas: Tensor | None = None  # [N]


def composite(
    densities: Tensor,
    channels: Tensor,
    t_starts: Tensor | None,
    t_ends: Tensor | None,
    offsets: Tensor,
    *,
    deltas: Tensor | None = None,
    ts: Tensor | None = None,
    early_stop_eps: float = 0.0,
    return_weights: bool = False,
    return_trans: bool = False,
    return_alphas: bool = False,
    background: Tensor | None = None,
) -> Composite:
    """Integrate channels along rays through an absorbing and emitting medium, constant within each sample.

    Sample i of a ray spans ``delta_i = t_ends[i] - t_starts[i]`` with its middle at ``t_mid_i``. With

        alpha_i = 1 - exp(-density_i delta_i)                  its opacity
        T_i = exp(-sum over j < i of density_j delta_j)        transmittance in front of it (exclusive)
        w_i = T_i alpha_i                                      its weight

    a ray's outputs are ``sum w_i channel_i``, ``sum w_i`` and ``sum w_i t_mid_i`` over the samples with
    ``T_i >= early_stop_eps``, of which there are ``n_samples``: a prefix of the ray, since T never rises. A
    background b shows through the first three channels: ``sum w_i channel_i + (1 - sum w_i) b``.

    Args:
        densities: [N] per unit of t. Infinite: alpha is exactly 1. Negative or NaN: counts as 0, its channels are ignored
            and both get gradient 0, so that neither light is created nor NaN spreads. An interval with
            ``t_end <= t_start`` is treated alike. Channels that no light reaches are ignored too.
        channels: [N, C], colors or anything else; any C, 32 channels cost one pass.
        t_starts: [N], finite; None if the samples are given by ``deltas`` and ``ts``.
        t_ends: [N], finite; None likewise.
        offsets: [R + 1] int32, CSR: ray r owns samples ``offsets[r]`` to ``offsets[r + 1]``; ``offsets[0] == 0``, never
            falling, ``offsets[R] <= N``. Not checked, which would synchronize.
        deltas: [N], the samples' lengths, where ``ts`` [N] says where they lie: in place of t_starts and t_ends.
        ts: [N], takes the place of ``t_mid``.
        early_stop_eps: in [0, 1); 0 composites every sample.
        return_weights: also return w [N].
        return_trans: also return T [N].
        return_alphas: also return alpha [N]. Each of the three costs N floats and no pass of its own. All are 0 for samples
            that were not composited and past ``offsets[R]``, so that ``w = T alpha`` everywhere.
        background: [3], or [R, 3] with one of its own for each ray; finite. Needs C >= 3. None: nothing is added.

    Returns:
        A :class:`Composite`. A ray without samples has zeros everywhere, or the background exactly; an opacity of 1 hides
        it exactly. Samples past ``offsets[R]`` have gradient 0, whatever they hold.

    Differentiable in densities, channels and background, through every floating-point output, and composited samples only:
    where the ray stops is a constant. t_starts, t_ends, deltas and ts get no gradient (None), offsets can't have one. Any
    number of times: with ``create_graph=True`` the gradient is computed by the reference, slowly and in float64, and so is
    everything under ``torch.func`` and forward-mode differentiation.

    Computed in float32, also under autocast; half-precision densities and channels are converted and get their gradients in
    their own dtype. Densities and channels in float64 are computed in float64 by the reference, which is slow. Between
    forward and backward nothing of size N is kept but the inputs, which must not change in between: torch raises an error.

    Raises:
        ValueError: a tensor has the wrong shape, dtype or device, both or neither form of the intervals are given, or
            early_stop_eps is out of range.

    Source: Max, "Optical models for direct volume rendering", TVCG 1995; Mildenhall et al., "NeRF: representing scenes as
    neural radiance fields for view synthesis", ECCV 2020, equation 3.
    """
    if (t_starts is None) != (t_ends is None) or (deltas is None) != (ts is None) or (t_starts is None) == (ts is None):
        given = [
            name
            for name, t in [("t_starts", t_starts), ("t_ends", t_ends), ("deltas", deltas), ("ts", ts)]
            if t is not None
        ]
        raise BadArgument(f"expected t_starts and t_ends, or deltas and ts, got {' and '.join(given) or 'none of them'}")
    return _composite(
        ("densities", densities),
        channels,
        {"t_starts": t_starts, "t_ends": t_ends} if ts is None else {"ts": ts, "deltas": deltas},
        offsets,
        (False, ts is not None),
        early_stop_eps,
        (return_weights, return_trans, return_alphas),
        background,
    )


def composite_alphas(
    alphas: Tensor,
    channels: Tensor,
    t_starts: Tensor | None,
    t_ends: Tensor | None,
    offsets: Tensor,
    *,
    ts: Tensor | None = None,
    early_stop_eps: float = 0.0,
    return_weights: bool = False,
    return_trans: bool = False,
    background: Tensor | None = None,
) -> Composite:
    """:func:`composite` of samples whose opacities are known: ``T_i = product over j < i of (1 - alpha_j)``.

    ``alphas`` [N] are in [0, 1]: a negative or NaN one counts as 0 without gradient, as a negative density does, and one
    above 1 as 1, also without. The derivative divides by nothing, so it is exact where an alpha is 0 or 1. The intervals
    only say where a sample lies, for the depth: t_starts and t_ends, or ``ts`` [N] in their place. All else is as there;
    channels behind an opaque sample must be finite, since its gradient depends on them.
    """
    if (t_starts is None) != (t_ends is None) or (t_starts is None) == (ts is None):
        raise BadArgument("expected either t_starts and t_ends, or ts")
    intervals = {"t_starts": t_starts, "t_ends": t_ends} if ts is None else {"ts": ts}
    wanted = return_weights, return_trans, False
    modes = True, ts is not None
    return _composite(("alphas", alphas), channels, intervals, offsets, modes, early_stop_eps, wanted, background)


def _composite(
    absorbers: tuple[str, Tensor],
    channels: Tensor,
    intervals: dict[str, Any],
    offsets: Tensor,
    modes: tuple[bool, bool],
    early_stop_eps: float,
    wanted: tuple[bool, bool, bool],
    background: Tensor | None,
) -> Composite:
    name, densities = absorbers
    check_tensor(name, densities, ("N",), FLOATS)
    n, double = densities.shape[0], densities.dtype is torch.float64
    check_tensor("channels", channels, (n, "C"), torch.float64 if double else (torch.float32, *_HALVES))
    for each, t in intervals.items():
        check_tensor(each, t, (n,), (torch.float32, torch.float64) if double else torch.float32)
    check_tensor("offsets", offsets, ("R + 1",), torch.int32)
    if offsets.shape[0] == 0:
        raise BadArgument("offsets: expected shape [R + 1] with R >= 0, got [0]")
    if background is not None:
        check_tensor("background", background, (3,) if background.ndim == 1 else (offsets.shape[0] - 1, 3), FLOATS)
        if channels.shape[1] < 3:
            raise BadArgument(f"background: expected at least 3 channels in front of it, got {channels.shape[1]}")
        background = background.to(torch.float64 if double else torch.float32).contiguous()
    check_same_device(**{name: densities}, channels=channels, **intervals, offsets=offsets, background=background)
    check_early_stop_eps(early_stop_eps)

    density = densities if double else densities.float().contiguous()
    first, *second = (t.contiguous() for t in intervals.values())  # an alpha needs no length: its place serves as one
    fixed = first, second[0] if second else first, offsets.contiguous(), float(early_stop_eps), *modes
    by_reference = double or is_transformed()
    op = reference if by_reference else torch.ops.lightning_nerf.composite
    # split's backward copies the gradient even where there is one part.
    split = [channels] if channels.shape[1] <= MAX_CHANNELS else channels.split(MAX_CHANNELS, dim=1)
    parts = [part if double else part.float().contiguous() for part in split]
    out, *others = op(density, parts[0], *fixed, *wanted, background)
    if len(parts) > 1:
        rest = (op(density, part, *fixed, False, False, False, None)[0] for part in parts[1:])
        out = torch.cat([out, *rest], dim=1)
    per_sample = (each if is_wanted else None for each, is_wanted in zip(others[3:], wanted, strict=True))
    return Composite(out, *others[:3], *per_sample)


def check_early_stop_eps(value: float) -> None:
    """A transmittance below 1: with 1 or more not even the first sample would be seen."""
    if not 0.0 <= value < 1.0:
        raise BadArgument(f"early_stop_eps: expected a transmittance in [0, 1), got {value}")


def _fake(
    densities: Tensor,
    channels: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    early_stop_eps: float,
    alphas_given: bool,
    deltas_given: bool,
    return_weights: bool,
    return_trans: bool,
    return_alphas: bool,
    background: Tensor | None,
) -> tuple[Tensor, ...]:
    n_rays = offsets.shape[0] - 1
    return (
        densities.new_empty((n_rays, channels.shape[1])),
        densities.new_empty(n_rays),
        densities.new_empty(n_rays),
        offsets.new_empty(n_rays),
        *(densities.new_empty(densities.shape[0] if w else 0) for w in (return_weights, return_trans, return_alphas)),
    )


def _fake_backward(*args: Any) -> tuple[Tensor, Tensor]:
    densities, channels, channels_wanted = args[6], args[7], args[15]
    return torch.empty_like(densities), channels.new_empty(
        (densities.shape[0] if channels_wanted else 0, channels.shape[1])
    )


def _setup_context(ctx: Context, inputs: Inputs, output: tuple[Tensor, ...]) -> None:
    *tensors, _, alphas_given, deltas_given, weights, trans, alphas, background = inputs
    ctx.modes, ctx.wanted = (alphas_given, deltas_given), (weights, trans, alphas)
    learned = background is not None and background.requires_grad
    ctx.save_for_backward(*tensors, output[3], background, output[1] if learned else None)


def _backward(
    ctx: Context, channels: Tensor | None, opacity: Tensor | None, depth: Tensor | None, _: Any, *per_sample: Tensor | None
) -> tuple[Tensor | None, ...]:
    given = [channels, opacity, depth, *(g if w else None for g, w in zip(per_sample, ctx.wanted, strict=True))]
    if all(g is None for g in given):
        return (None,) * 12
    if torch.is_grad_enabled():  # create_graph: a gradient of this gradient may be wanted
        grad_densities, grad_channels, grad_background = _backward_by_reference(ctx, given)
        return grad_densities, grad_channels, *(None,) * 9, grad_background
    *saved, background, rays_opacity = ctx.saved_tensors
    channels_wanted = ctx.needs_input_grad[1] and channels is not None
    cotangents = [None if g is None else g.contiguous() for g in given]
    grad_densities, grad_channels = torch.ops.lightning_nerf.composite_backward(
        *cotangents, *saved, background, *ctx.modes, channels_wanted
    )
    grad_background = None
    if rays_opacity is not None and channels is not None:
        grad_background = channels[:, :3] * (1 - rays_opacity)[:, None]
        grad_background = grad_background.sum(0) if background.ndim == 1 else grad_background
    return grad_densities, grad_channels if channels_wanted else None, *(None,) * 9, grad_background


def _backward_by_reference(ctx: Context, given: list[Tensor | None]) -> list[Tensor | None]:
    """Gradients of densities, channels and background that can be differentiated again."""
    densities, channels, t_starts, t_ends, offsets, n_samples, background, _ = ctx.saved_tensors
    given_alphas, given_deltas = ctx.modes
    out, opacity, depth, _, *per_sample = integrate(
        densities, channels, t_starts, t_ends, offsets, 0.0, given_alphas, given_deltas, n_samples, background
    )
    pairs = [
        (value, grad)
        for value, grad in zip((out, opacity, depth, *per_sample), given, strict=True)
        if grad is not None and value.requires_grad
    ]
    values, grads = zip(*pairs, strict=True)
    inputs = [t if t is not None and t.requires_grad else None for t in (densities, channels, background)]
    learned = [t for t in inputs if t is not None]
    found = iter(torch.autograd.grad(values, learned, grads, create_graph=True, allow_unused=True))
    return [None if t is None else next(found) for t in inputs]


library.define(
    "composite",
    "(Tensor densities, Tensor channels, Tensor t_starts, Tensor t_ends, Tensor offsets, float early_stop_eps, "
    "bool alphas_given, bool deltas_given, bool return_weights, bool return_trans, bool return_alphas, "
    "Tensor? background) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference,
    _fake,
)
library.define(
    "composite_backward",
    "(Tensor? grad_channels_out, Tensor? grad_opacity, Tensor? grad_depth, Tensor? grad_weights, Tensor? grad_trans, "
    "Tensor? grad_alphas, Tensor densities, Tensor channels, Tensor t_starts, Tensor t_ends, Tensor offsets, "
    "Tensor n_samples, Tensor? background, bool alphas_given, bool deltas_given, bool channels_wanted) "
    "-> (Tensor, Tensor)",
    backward_reference,
    _fake_backward,
)
library.differentiable("composite", _setup_context, _backward)
library.once_differentiable(
    "composite_backward", "lightning_nerf.ops.composite.composite is differentiable any number of times"
)
