"""Losses: one on an extra channel, one on the weights of an earlier round."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf import Loss, PackedSamples, Step


class LabelLoss(Loss):
    """``extras["label"]`` is to be 1 where red is seen, 0 where nothing is."""

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight, "label_loss")

    def forward(self, step: Step) -> Tensor:
        counts = step.counts.float()
        error = (step.render.extras["label"][:, 0] - red(step.batch.rgb, step.batch.alpha)).square()
        return (error * counts).sum() / counts.sum().clamp(min=1)


class AgreeingRounds(Loss):
    """The coarse round is to find the distance that the fine one renders; gradients go to the coarse round alone."""

    needs_weights = True

    def forward(self, step: Step) -> Tensor:
        coarse, fine = step.placement.rounds[0], step.placement.samples
        assert step.render.weights is not None
        found = per_ray(coarse.samples, coarse.weights)
        rendered = per_ray(fine, step.render.weights.detach())
        counts = step.counts.float()
        return ((found - rendered).square() * counts).sum() / counts.sum().clamp(min=1)


def per_ray(samples: PackedSamples, weights: Tensor) -> Tensor:
    """Sum of weight times the sample's middle, [R]."""
    middle = 0.5 * (samples.t_starts + samples.t_ends)
    return torch.zeros(len(samples.kept), device=weights.device).index_add(0, samples.ray_indices, weights * middle)


def red(rgb: Tensor, alpha: Tensor | None) -> Tensor:
    """1 where a pixel shows the red ball, else 0; of rgb [..., 3] with straight alpha [...]."""
    seen = rgb[..., 0] > rgb[..., 2]
    return seen.float() if alpha is None else seen * alpha
