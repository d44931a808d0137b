"""The optimizer and the schedule of a NeRFModule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.ema import EMAWeights
from lightning_nerf.capabilities import states
from lightning_nerf.checks import BadArgument, check_number
from lightning_nerf.modules.schedule import SpreadSchedule, WarmupDecay
from lightning_nerf.optim import FusedAdam, StepGuard
from lightning_nerf.recorded import Plain


@states("averages")
def adam(params: Any) -> Optimizer:
    """Adam with the constants of Instant-NGP and an average over the last tenth of all steps, at most 5,000.

    :class:`EMAWeights` evaluates and saves the average. It spares a schedule that has decayed before one may look: after
    6,000 steps on Lego the average at a constant rate is 0.13 dB above the weights of a schedule that decays to end there.
    """
    average = {"ema_decay": 0.9998, "ema_share": 0.1, "ema_every": 4}
    return FusedAdam(params, lr=1e-2, betas=(0.9, 0.99), eps=1e-15, **average)


def parameter_groups(parts: Iterable[tuple[str, nn.Module]]) -> list[Plain]:
    """A named group for each part that has something to train, and for each module in it that states a ``rate_factor``.

    The factor holds for all parameters below the module that states it, but for those below a module that states another.
    """
    groups: dict[str, Plain] = {}
    for name, part in parts:
        seen: set[nn.Parameter] = set()
        for owner, factor, parameter in _with_factors(part, name, name, 1.0):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                groups.setdefault(owner, {"params": [], "name": owner, "rate_factor": factor})["params"].append(parameter)
    return list(groups.values())


def _with_factors(module: nn.Module, name: str, owner: str, factor: float) -> Iterator[tuple[str, float, nn.Parameter]]:
    """All parameters below a module, with the rate factor that holds for them and the name of the module that states it."""
    stated = getattr(module, "rate_factor", None)
    if stated is not None:
        check_number(f"{name}.rate_factor", stated, "[0, inf)")
        owner, factor = name, float(stated)
    for parameter in module.parameters(recurse=False):
        yield owner, factor, parameter
    for child_name, child in module.named_children():
        yield from _with_factors(child, f"{name}.{child_name}", owner, factor)


def configure(
    trainer: L.Trainer,
    groups: list[Plain],
    make_optimizer: OptimizerCallable,
    make_scheduler: LRSchedulerCallable | None,
) -> OptimizerLRScheduler:
    """The optimizer and a scheduler that is stepped every training step.

    An optimizer that does not state ``skips_bad_steps`` gets a :class:`StepGuard`.
    """
    optimizer = make_optimizer(groups)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group.get("rate_factor", 1.0)
    if not getattr(optimizer, "skips_bad_steps", False):
        StepGuard(optimizer)
    averages = any(group.get("ema_decay") is not None for group in optimizer.param_groups)
    given = lightning_names.callbacks(trainer)
    if averages and not any(isinstance(c, EMAWeights) or lightning_names.is_weight_averaging(c) for c in given):
        rank_zero_warn(
            "the optimizer keeps averaged weights (ema_decay), but no callback uses them: validation, test and "
            "checkpoints have the raw ones. Add lightning_nerf.callbacks.EMAWeights, or set ema_decay to None."
        )
    scheduler = (WarmupDecay if make_scheduler is None else make_scheduler)(optimizer)
    if isinstance(scheduler, SpreadSchedule) and scheduler.total_steps is None:
        steps = trainer.estimated_stepping_batches
        if not 0 < steps < float("inf"):  # the loader is endless, so an epoch has no length
            raise BadArgument(f"max_steps: the schedule needs Trainer(max_steps=...), got {trainer.max_steps}")
        scheduler.spread_over(int(steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}  # type: ignore[return-value]
