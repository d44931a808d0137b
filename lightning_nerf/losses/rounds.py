"""Losses on earlier rounds of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_number
from lightning_nerf.losses.base import Loss
from lightning_nerf.ops.ray_loss import ray_loss
from lightning_nerf.types import Step


class RoundPhotometric(Loss):
    """Photometric loss of the pictures that earlier rounds of samples give: the mean over rounds of their Huber losses.

    With :class:`Photometric` it is the photometric loss on both coarse and fine samples. A ray counts if its samples fit
    in the round and in the last one. The colors are those of the round's own field, or of the module's field where the
    round has none; see :class:`~lightning_nerf.types.RenderedRound`. Differentiable in both.

    >>> from lightning_nerf import Hierarchical, InstantNGPField, NeRFModule, Photometric, RoundPhotometric
    >>> field = InstantNGPField(n_levels=4, log2_table_size=12, max_resolution=64)
    >>> module = NeRFModule(field, Hierarchical(32, 64), losses=[Photometric(), RoundPhotometric()])
    >>> [loss.name for loss in module.losses]
    ['photometric', 'coarse_photometric']

    Args:
        delta: errors below it cost quadratically, above it linearly; inf for half the squared error. > 0.
        weight, name: see :class:`Loss`.

    Raises:
        BadArgument: in a step, where the estimator makes no earlier rounds.

    Source: Mildenhall et al., "NeRF: representing scenes as neural radiance fields for view synthesis", ECCV 2020,
    equation 6.
    """

    needs_rounds = True

    def __init__(self, delta: float = 0.1, weight: float = 1.0, name: str | None = "coarse_photometric") -> None:
        super().__init__(weight, name)
        check_number("delta", delta, "(0, inf]")
        self.delta = delta

    def forward(self, step: Step) -> Tensor:
        """See :meth:`Loss.forward`."""
        if not step.rounds:
            raise BadArgument(f"step.rounds: the loss {self.name!r} expected at least one earlier round, got none")
        batch, kept = step.batch, step.placement.samples.kept
        terms = [
            ray_loss(
                each.render.rgb,
                batch.rgb,
                kept=kept & each.samples.kept,
                mask=batch.mask,
                alpha=batch.alpha,
                background=step.background,
                delta=self.delta,
            )[0]
            for each in step.rounds
        ]
        return terms[0] if len(terms) == 1 else torch.stack(terms).mean()
