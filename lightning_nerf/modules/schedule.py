"""The learning-rate schedule that NeRFModule uses unless another is given."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_nerf.checks import check_instance, check_integer, check_number


@runtime_checkable
class SpreadSchedule(Protocol):
    """A schedule that a fit tells how long it is, where ``total_steps`` is None."""

    total_steps: int | None

    def spread_over(self, total_steps: int) -> None:
        """Learn the number of optimizer steps before the first of them."""
        ...


class WarmupDecay(LambdaLR):
    """Linear warm-up, constant, then exponential decay to ``final`` times the base rate at ``total_steps``.

    Warm-up is a number of steps, because what it tames is: Adam moves every weight by the rate in each of its first steps,
    whatever the gradient, and at 1e-2 a few dozen such steps in one direction leave a small ReLU network dead. The decay is
    a share of the run, so that a recipe means the same thing when it is made longer or shorter. It is mild: averaged
    weights (:class:`lightning_nerf.FusedAdam`) have in themselves what a decay to nothing gives; without an average,
    ``final=0.01`` is the better choice.

    Args:
        optimizer: the wrapped optimizer.
        total_steps: optimizer steps of the whole run, >= 1; None: a :class:`NeRFModule` fills in those of its fit.
        warmup_steps: steps spent rising linearly from 1 % of the base rate; at most a tenth of the run is.
        decay_start: share of the run after which the rate decays, in [0.1, 1].
        final: factor of the base rate reached at the end, > 0.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        warmup_steps: int = 100,
        decay_start: float = 0.4,
        final: float = 0.3,
    ) -> None:
        check_instance("optimizer", optimizer, Optimizer)
        if total_steps is not None:
            check_integer("total_steps", total_steps, 1, 2**63 - 1)
        check_integer("warmup_steps", warmup_steps, 0)
        check_number("decay_start", decay_start, "[0.1, 1]")
        check_number("final", final, "(0, inf)")
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.decay_start = decay_start
        self.final = final
        super().__init__(optimizer, lambda step: self._factor(step))

    def spread_over(self, total_steps: int) -> None:
        """Learn how long the run is, where that was not said, before its first step."""
        if self.total_steps is None:
            self.total_steps = total_steps
            for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
                rate = base * factor(self.last_epoch)
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
            self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is. Its shape is the recipe's: a run that goes on may be longer."""
        state = super().state_dict()
        for name in ("total_steps", "warmup_steps", "decay_start", "final"):
            state.pop(name)
        return state

    def _factor(self, step: int) -> float:
        if self.total_steps is None:
            return 1.0
        warmup = min(self.warmup_steps, self.total_steps // 10)
        if step < warmup:
            return 0.01 + 0.99 * step / warmup
        share = min(step / self.total_steps, 1.0)
        if share <= self.decay_start:
            return 1.0
        return math.exp(math.log(self.final) * (share - self.decay_start) / (1 - self.decay_start))
