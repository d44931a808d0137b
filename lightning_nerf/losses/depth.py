"""Rendered depths against measured ones."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_number
from lightning_nerf.losses.base import Loss
from lightning_nerf.types import Step


class DepthSupervision(Loss):
    r"""Mean Huber loss of the relative error of depths, over the rays that count and whose depth is known.

    .. math:: \frac1K \sum_r \mathrm{huber}_\delta \Bigl( \frac{\sum_i w_i t_i - z_r}{z_r} \Bigr)

    with the middles :math:`t_i` of samples and the measured :math:`z_r`. The data module reads
    depths where a loss states ``needs_depths``: those that ``depth_file_path`` names in a ``transforms.json``. Also logs
    ``n_depths``, the number K of rays. Differentiable in the render's depth.

    >>> from lightning_nerf import DepthSupervision, InstantNGPField, NeRFModule, OccupancyGrid, Photometric
    >>> field = InstantNGPField(n_levels=4, log2_table_size=12, max_resolution=64)
    >>> module = NeRFModule(field, OccupancyGrid(resolution=32), losses=[Photometric(), DepthSupervision(weight=0.1)])
    >>> [loss.name for loss in module.losses]
    ['photometric', 'depth_supervision']

    Args:
        delta: relative errors below it cost quadratically, above it linearly. > 0.
        weight, name: see :class:`Loss`.

    Raises:
        BadArgument: in a step, where no training view has depths.
    """

    needs_depths = True

    def __init__(self, delta: float = 0.1, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        check_number("delta", delta, "(0, inf)")
        self.delta = delta

    def forward(self, step: Step) -> Tensor:
        """See :meth:`Loss.forward`."""
        depth = step.batch.depth
        if depth is None:
            raise BadArgument(
                f"data: the loss {self.name!r} wants depths, but no training view has any; expected depth_file_path in the "
                "frames of transforms.json, read by CaptureData, or RayBatch(..., depth=...)"
            )
        known = step.counts & (depth > 0)
        step.logs["n_depths"] = known.sum()
        truth = torch.where(known, depth, 1.0)
        error = torch.where(known, (step.render.depth - truth) / truth, 0.0)
        each = torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=self.delta)
        return each.sum() / step.logs["n_depths"].clamp(min=1)
