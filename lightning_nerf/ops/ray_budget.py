"""How many rays the next step takes, decided on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_same_device, check_tensor
from lightning_nerf.ops import library

_INTEGERS = (torch.int32, torch.int64)


def ray_budget_(n_rays: Tensor, n_samples: Tensor, n_counted: Tensor, *, target: float, max_rays: int) -> None:
    """Let ``n_rays`` follow a target number of samples, in place and without synchronization.

        n_rays <- target / (n_samples / n_counted), at least half and at most twice n_rays, in [1, max_rays], rounded down

    Args:
        n_rays: [] int32, rays of the last step and then of the next.
        n_samples: [] int32 or int64, samples of the last step.
        n_counted: [] int32 or int64, the rays that they belong to; 0 counts as 1.
        target: wanted samples, > 0.
        max_rays: 1 to 2^31 - 1.
    """
    check_tensor("n_rays", n_rays, (), torch.int32)
    check_tensor("n_samples", n_samples, (), _INTEGERS)
    check_tensor("n_counted", n_counted, (), _INTEGERS)
    check_same_device(n_rays=n_rays, n_samples=n_samples, n_counted=n_counted)
    if not target > 0:
        raise BadArgument(f"target: expected > 0, got {target}")
    if not 1 <= max_rays < 2**31:
        raise BadArgument(f"max_rays: expected 1 <= max_rays < 2**31, got {max_rays}")
    torch.ops.lightning_nerf.ray_budget_(n_rays, n_samples.int(), n_counted.long(), float(target), max_rays)


def reference(n_rays: Tensor, n_samples: Tensor, n_counted: Tensor, target: float, max_rays: int) -> None:
    per_ray = n_samples.float() / n_counted.clamp(min=1).float()
    wanted = (target / per_ray.clamp(min=1e-6)).clamp(n_rays * 0.5, n_rays * 2.0)
    # In float64, which holds every int32.
    n_rays.copy_(wanted.double().clamp(1, max_rays))


library.define(
    "ray_budget_",
    "(Tensor(a!) n_rays, Tensor n_samples, Tensor n_counted, float target, int max_rays) -> ()",
    reference,
    lambda *_: None,
)
