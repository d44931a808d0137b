"""Where an estimator's rounds put samples along rays, and where they find light."""

from __future__ import annotations

from typing import NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.clock import clock_of
from lightning_nerf.callbacks.loggers import log_histogram, logged_step
from lightning_nerf.callbacks.trained import trained
from lightning_nerf.checks import check_integer
from lightning_nerf.estimators.stratified import weights_of
from lightning_nerf.types import PackedSamples, Placement, Rays


class Histograms(NamedTuple):
    """Of one round: sums over all rays in B parts of the way from near to far."""

    samples: Tensor  # [B], how many samples lie there
    weights: Tensor  # [B], and how much light comes from there
    entropy: float  # mean over rays; 0: one sample has all the weight, 1: all have the same


def histograms(rays: Rays, samples: PackedSamples, weights: Tensor, edges: Tensor | None, n_bins: int) -> Histograms:
    """Where a round's samples lie and their weights [N] are; edges: see :class:`~lightning_nerf.types.Placement`.

    The way from near to far is in the spacing of the estimator where ``edges`` tell it, else in distances.
    """
    n = int(samples.offsets[-1])
    ray, weights = samples.ray_indices[:n].long(), weights[:n].detach().double()
    if edges is None:
        near, far = rays.near[ray], rays.far[ray]
        share = ((samples.t_starts[:n] + samples.t_ends[:n]) / 2 - near) / (far - near)
    else:
        share = ((edges[:, :-1] + edges[:, 1:]) / 2).flatten()[:n]
    bins = (share * n_bins).long().clamp(0, n_bins - 1)
    zeros, counts = weights.new_zeros(n_bins), samples.offsets.diff()
    total = weights.new_zeros(len(counts)).index_add(0, ray, weights)
    part = weights / total[ray].clamp(min=1e-12)
    entropy = weights.new_zeros(len(counts)).index_add(0, ray, -torch.xlogy(part, part)) / counts.double().log()
    counted = entropy[(total > 1e-3) & (counts > 1)]
    return Histograms(
        zeros.index_add(0, bins, torch.ones_like(weights)),
        zeros.index_add(0, bins, weights),
        float(counted.mean()) if len(counted) else float("nan"),
    )


class RoundHistograms(L.Callback):
    """Log where each round of an estimator such as :class:`~lightning_nerf.Proposal` puts samples and finds light.

    Every ``every_n_steps``, and at the end, of some training rays, by the weights as they are; round 0 is the first:

    - ``rounds/samples_i`` and ``rounds/weights_i``: histograms along rays, from 0 at near to 1 at far in the estimator's
      spacing, to loggers that take them (:func:`~lightning_nerf.callbacks.loggers.log_histogram`). A good proposal has its
      weights where those of the last round are, and the next round's samples are there.
    - ``rounds/entropy_i``: how spread out a ray's weights are, from 0 (one sample has all) to 1 (all have the same), to all
      loggers. It falls as the scene gets surfaces.

    The clock of training stands still meanwhile.

    Args:
        every_n_steps: steps between two readings, >= 1.
        n_rays: how many rays, >= 1.
        n_bins: of each histogram, 1 to 512.

    >>> from lightning_nerf.callbacks import RoundHistograms
    >>> RoundHistograms(every_n_steps=1000).n_bins
    64
    """

    def __init__(self, every_n_steps: int = 500, n_rays: int = 1024, n_bins: int = 64) -> None:
        check_integer("every_n_steps", every_n_steps, 1)
        check_integer("n_rays", n_rays, 1)
        check_integer("n_bins", n_bins, 1, 512)
        self.every_n_steps, self.n_rays, self.n_bins = every_n_steps, n_rays, n_bins
        self._is_read = True  # whether the last step's rounds are logged

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Log, where due."""
        self._is_read = lightning_names.batches_done(trainer) % self.every_n_steps == 0
        if self._is_read and trainer.is_global_zero:
            clock_of(trainer).halt()
            self._log(trainer, pl_module)
            clock_of(trainer).resume()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the last step's, unless it is logged."""
        clock_of(trainer).halt()
        if trainer.is_global_zero and not self._is_read:
            self._log(trainer, pl_module)

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = logged_step(trainer)
        scalars = dict[str, float]()
        for i, found in enumerate(self.read(pl_module)):
            for name, counts in (("samples", found.samples), ("weights", found.weights)):
                log_histogram(trainer, f"rounds/{name}_{i}", counts.cpu().numpy(), step)
            scalars[f"rounds/entropy_{i}"] = found.entropy
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=step)

    @torch.no_grad()
    def read(self, pl_module: L.LightningModule) -> list[Histograms]:
        """The histograms of all rounds, the last one's by the module's field."""
        module = trained(pl_module)
        rays = module.draw().rays.map(lambda tensor: tensor[: self.n_rays])
        placement: Placement = module.estimator.place(rays, module.field.query)
        densities = module.field.query(rays, placement.samples).values
        last = (placement.samples, weights_of(densities, placement.samples), placement.edges)
        rounds = [(each.samples, each.weights, each.edges) for each in placement.rounds]
        return [histograms(rays, *each, self.n_bins) for each in [*rounds, last]]
