"""``composite`` and ``composite_alphas`` in pure torch: their definition, of any dtype, differentiable twice."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.ops.segments import exclusive_sum

_OPAQUE = 800.0  # exp(-800) is 0 in float64: a finite stand-in for infinite optical depth

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def owners(n: int, offsets: Tensor) -> Tensor:
    """The ray of each sample [n] int64; R for the tail."""
    return torch.searchsorted(
        offsets[1:].contiguous(), torch.arange(n, device=offsets.device, dtype=torch.int32), right=True
    )


def exclusive_product(values: Tensor, owner: Tensor, offsets: Tensor) -> Tensor:
    """Product of the earlier values of the same ray, by doubling: exact, with all its derivatives, where a factor is 0."""
    n = values.shape[0]
    rank = torch.arange(n, device=offsets.device) - offsets.long()[owner]
    product = torch.where(rank >= 1, torch.cat([values.new_ones(1), values])[:n], 1.0)
    step, longest = 1, int(rank.max()) if n > 0 else 0
    while step <= longest:
        before = torch.cat([values.new_ones(step), product])[:n]
        product = torch.where(rank >= step, product * before, product)
        step *= 2
    return product


def _transmittance(
    alphas_given: bool, densities: Tensor, delta: Tensor, owner: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """T_i and alpha_i [N]."""
    if alphas_given:
        alphas = densities.clamp(max=1.0)
        return exclusive_product(1 - alphas, owner, offsets), alphas
    optical_depth = (densities * delta).clamp(max=_OPAQUE)
    return torch.exp(-exclusive_sum(optical_depth, owner, offsets)), -torch.expm1(-optical_depth)


def integrate(
    densities: Tensor,
    channels: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    early_stop_eps: float,
    alphas_given: bool,
    deltas_given: bool,
    n_samples: Tensor | None = None,
    background: Tensor | None = None,
) -> Outputs:
    """Channels, opacity, depth, n_samples, and all of weights, trans and alphas; ``n_samples`` [R] fixes where rays end.

    Computed in float64: a global cumulative sum in float32 cancels to 1e-4 over 10^5 samples.
    """
    n, n_rays = densities.shape[0], offsets.shape[0] - 1
    owner = owners(n, offsets)
    t_starts, t_ends = t_starts.detach().double(), t_ends.detach().double()
    delta, middle = (t_ends, t_starts) if deltas_given else (t_ends - t_starts, 0.5 * (t_starts + t_ends))
    solid = (densities >= 0) & (owner < n_rays)  # False for NaN
    if not alphas_given:
        solid &= delta > 0
    delta = torch.where(solid, delta, 0.0)
    density = torch.where(solid, densities, 0.0).double()
    trans, alphas = _transmittance(alphas_given, density, delta, owner, offsets)
    if n_samples is None:
        stopped = (trans < early_stop_eps).long()
        used = (exclusive_sum(stopped, owner, offsets) + stopped == 0) & (owner < n_rays)
        n_samples = torch.zeros(n_rays + 1, dtype=torch.int32, device=owner.device)
        n_samples = n_samples.index_add(0, owner, used.int())[:-1]
    else:
        rank = torch.arange(n, device=owner.device) - offsets.long()[owner]
        used = rank < torch.cat([n_samples, n_samples.new_zeros(1)])[owner]
    seen = solid & used
    trans, alphas = torch.where(used, trans, 0.0), torch.where(seen, alphas, 0.0)
    weights = torch.where(seen, trans * alphas, 0.0)
    middle = torch.where(seen, middle, 0.0)
    lit = seen if alphas_given else seen & (trans > 0)
    values = torch.cat([torch.where(lit[:, None], channels, 0.0), torch.ones_like(middle)[:, None], middle[:, None]], dim=1)
    sums = values.new_zeros(n_rays + 1, values.shape[1]).index_add(0, owner, weights[:, None] * values)[:-1]
    if background is not None:
        behind = (1 - sums[:, -2:-1]) * background.double()
        sums = torch.cat([sums[:, :3] + behind, sums[:, 3:]], dim=1)
    sums, *per_sample = (values.to(densities.dtype) for values in (sums, weights, trans, alphas))
    weights, trans, alphas = per_sample
    return sums[:, :-2].clone(), sums[:, -2].clone(), sums[:, -1].clone(), n_samples, weights, trans, alphas


def reference(
    densities: Tensor,
    channels: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    early_stop_eps: float = 0.0,
    alphas_given: bool = False,
    deltas_given: bool = False,
    return_weights: bool = False,
    return_trans: bool = False,
    return_alphas: bool = False,
    background: Tensor | None = None,
) -> Outputs:
    """Channels [R, C], opacity, depth and n_samples [R], then weights, trans and alphas: [N], or [0] unless asked for."""
    modes = alphas_given, deltas_given
    *sums, weights, trans, alphas = integrate(
        densities, channels, t_starts, t_ends, offsets, early_stop_eps, *modes, None, background
    )
    wanted = (weights, return_weights), (trans, return_trans), (alphas, return_alphas)
    return (*sums, *(each if is_wanted else densities.new_empty(0) for each, is_wanted in wanted))  # type: ignore[return-value]


def backward_reference(
    grad_channels_out: Tensor | None,
    grad_opacity: Tensor | None,
    grad_depth: Tensor | None,
    grad_weights: Tensor | None,
    grad_trans: Tensor | None,
    grad_alphas: Tensor | None,
    densities: Tensor,
    channels: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    offsets: Tensor,
    n_samples: Tensor,
    background: Tensor | None,
    alphas_given: bool,
    deltas_given: bool,
    channels_wanted: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of densities [N] and channels [N, C] ([0, C] unless wanted)."""

    def outputs(densities: Tensor, channels: Tensor) -> tuple[Tensor, ...]:
        arguments = t_starts, t_ends, offsets, 0.0, alphas_given, deltas_given
        out, opacity, depth, _, *per_sample = integrate(densities, channels, *arguments, n_samples, background)
        return (out, opacity, depth, *per_sample)

    # Not autograd.grad: below the dispatcher's autograd key it records nothing.
    values, pullback, *_ = torch.func.vjp(outputs, densities, channels)
    given = (grad_channels_out, grad_opacity, grad_depth, grad_weights, grad_trans, grad_alphas)
    grads = pullback(tuple(torch.zeros_like(v) if g is None else g for v, g in zip(values, given, strict=True)))
    return grads[0], grads[1] if channels_wanted else channels.new_empty((0, channels.shape[1]))
