"""The learning-rate schedule that NeRFModule uses unless another is given."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupDecay(LambdaLR):
    """Linear warm-up, constant, then exponential decay to ``final`` times the base rate at ``total_steps``.

    All lengths are shares of the run, so that a recipe means the same thing when it is made longer or shorter.

    Args:
        optimizer: the wrapped optimizer.
        total_steps: optimizer steps of the whole run, >= 1.
        warmup: share of the run spent rising linearly from 1 % of the base rate, in [0, 1).
        decay_start: share of the run after which the rate decays, in [warmup, 1].
        final: factor of the base rate reached at the end, > 0.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup: float = 0.005,
        decay_start: float = 0.4,
        final: float = 0.01,
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps: expected >= 1, got {total_steps}")
        if not 0 <= warmup < 1 or not warmup <= decay_start <= 1 or not final > 0:
            raise ValueError(
                "expected 0 <= warmup < 1, warmup <= decay_start <= 1 and final > 0, "
                f"got warmup={warmup}, decay_start={decay_start}, final={final}"
            )

        def factor(step: int) -> float:
            share = min(step / total_steps, 1.0)
            if share < warmup:
                return 0.01 + 0.99 * share / warmup
            if share <= decay_start:
                return 1.0
            return math.exp(math.log(final) * (share - decay_start) / (1 - decay_start))

        super().__init__(optimizer, factor)
