"""Which samples a field's density or opacity leaves visible."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_nerf.checks import check_returned
from lightning_nerf.ops.visibility import prune, prune_from
from lightning_nerf.types import PackedSamples

SampleFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``fn(t_starts [N], t_ends [N], ray_indices [N])`` gives a number for each sample, [N]."""


def visible_samples(
    samples: PackedSamples,
    sigma_fn: SampleFn | None,
    alpha_fn: SampleFn | None,
    early_stop_eps: float,
    alpha_thre: Tensor,
) -> PackedSamples:
    """The samples with ``T_i >= early_stop_eps`` and ``alpha_i >= alpha_thre`` []; sigma_fn goes before alpha_fn."""
    arguments = (samples.t_starts, samples.t_ends, samples.ray_indices.long())
    if sigma_fn is not None:
        densities = _per_sample("sigma_fn", sigma_fn(*arguments), samples)
        return prune(densities, samples, early_stop_eps=early_stop_eps, alpha_thre=alpha_thre)
    assert alpha_fn is not None
    # Opacities are densities in steps of length 1. Their logarithm is rounded: what equals the threshold must stay.
    alphas = _per_sample("alpha_fn", alpha_fn(*arguments), samples).clamp(max=1)
    unit = samples._replace(t_starts=torch.zeros_like(alphas), t_ends=torch.ones_like(alphas))
    thinner = alpha_thre * (1 - 2**-21)
    visible, sources = prune_from(-torch.log1p(-alphas), unit, early_stop_eps=early_stop_eps, alpha_thre=thinner)
    return visible._replace(t_starts=samples.t_starts[sources], t_ends=samples.t_ends[sources])


def _per_sample(name: str, values: Tensor, samples: PackedSamples) -> Tensor:
    check_returned(name, values, tuple(samples.t_starts.shape), device=samples.t_starts.device)
    return values.float()
