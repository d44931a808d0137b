"""The learning-rate schedule that NeRFModule uses unless another is given."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_nerf.checks import check_instance, check_integer, check_number


class WarmupDecay(LambdaLR):
    """Linear warm-up, constant, then exponential decay to ``final`` times the base rate at ``total_steps``.

    Warm-up is a number of steps, because what it tames is: Adam moves every weight by the rate in each of its first steps,
    whatever the gradient, and at 1e-2 a few dozen such steps in one direction leave a small ReLU network dead. The decay is
    a share of the run, so that a recipe means the same thing when it is made longer or shorter. It is mild: averaged
    weights (:class:`lightning_nerf.FusedAdam`) have in themselves what a decay to nothing gives; without an average,
    ``final=0.01`` is the better choice.

    Args:
        optimizer: the wrapped optimizer.
        total_steps: optimizer steps of the whole run, >= 1.
        warmup_steps: steps spent rising linearly from 1 % of the base rate; at most a tenth of the run is.
        decay_start: share of the run after which the rate decays, in [0.1, 1].
        final: factor of the base rate reached at the end, > 0.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 100,
        decay_start: float = 0.4,
        final: float = 0.3,
    ) -> None:
        check_instance("optimizer", optimizer, Optimizer)
        check_integer("total_steps", total_steps, 1, 2**63 - 1)
        check_integer("warmup_steps", warmup_steps, 0)
        check_number("decay_start", decay_start, "[0.1, 1]")
        check_number("final", final, "(0, inf)")
        warmup = min(warmup_steps, total_steps // 10)

        def factor(step: int) -> float:
            if step < warmup:
                return 0.01 + 0.99 * step / warmup
            share = min(step / total_steps, 1.0)
            if share <= decay_start:
                return 1.0
            return math.exp(math.log(final) * (share - decay_start) / (1 - decay_start))

        super().__init__(optimizer, factor)
