"""Rendered colors against true ones."""

from __future__ import annotations

from torch import Tensor

from lightning_nerf.checks import check_number
from lightning_nerf.losses.base import Loss
from lightning_nerf.ops.ray_loss import ray_loss
from lightning_nerf.types import Step


class Photometric(Loss):
    """Mean Huber loss of the colors of the rays that count, see :func:`~lightning_nerf.ops.ray_loss.ray_loss`.

    Also logs ``mse``, the mean squared error, and ``n_rays``, the number of rays that count.

    >>> from lightning_nerf import Photometric
    >>> Photometric(delta=0.1).delta
    0.1

    Args:
        delta: errors below it cost quadratically, above it linearly; inf for half the squared error. > 0.
        weight, name: see :class:`Loss`.
    """

    def __init__(self, delta: float = 0.1, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        check_number("delta", delta, "(0, inf]")
        self.delta = delta

    def forward(self, step: Step) -> Tensor:
        """See :meth:`Loss.forward`."""
        batch = step.batch
        loss, step.logs["mse"], step.logs["n_rays"] = ray_loss(
            step.render.rgb,
            batch.rgb,
            kept=step.placement.samples.kept,
            mask=batch.mask,
            alpha=batch.alpha,
            background=step.background,
            delta=self.delta,
        )
        return loss
