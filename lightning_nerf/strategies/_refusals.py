"""What CUDA graphs cannot hold: refused by name, or run eagerly with a reason."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer

from lightning_nerf import lightning_names
from lightning_nerf.checks import BadArgument, BadType
from lightning_nerf.optim import StepGuard


def refuse_combination(strategy: str, trainer: L.Trainer, module: L.LightningModule | None, plugin: Precision) -> None:
    """Name what cannot work in CUDA graphs, before anything is set up."""
    prefix, instead = f"strategy={strategy!r} cannot be combined with", "use strategy='auto'"
    if module is None or not hasattr(type(module), "executor"):
        raise BadType(
            f"strategy={strategy!r} trains modules whose training_step goes through self.executor.step, such as "
            f"lightning_nerf.modules.NeRFModule, got {type(module).__name__}: {instead}"
        )
    if not module.automatic_optimization:
        raise BadArgument(f"{prefix} automatic_optimization=False: {instead}")
    if lightning_names.detects_anomaly(trainer):
        raise BadArgument(f"{prefix} detect_anomaly=True, which reads every result on the host: drop it, or {instead}")
    if type(plugin) not in (Precision, MixedPrecision):
        raise BadArgument(
            f"{prefix} the precision plugin {type(plugin).__name__}: choose precision 32-true, bf16-mixed or 16-mixed, "
            f"or {instead}"
        )


def refuse_optimizers(strategy: str, optimizers: list[Optimizer]) -> None:  # Lightning refuses several
    if isinstance(optimizers[0], LBFGS):
        raise BadArgument(
            f"strategy={strategy!r} cannot be combined with the optimizer LBFGS, which runs the step several times at "
            "will: use another, or strategy='auto'"
        )


def why_eager(optimizer: Optimizer, plugin: Precision) -> str | None:
    """Why an optimizer's step must not be captured, or None."""
    name = type(optimizer).__name__
    if lightning_names.scaler_of(plugin) is not None and not lightning_names.unscales_by_itself(optimizer):
        return f"under 16-mixed a GradScaler waits for {name}; a fused one (fused=True, or FusedAdam) would not"
    # Of torch's own, some read the rate on the host even when told to be capturable, and SGD does unless fused.
    if type(optimizer).__module__.startswith("torch.optim"):
        on_device = type(optimizer) in (Adam, AdamW) or all(
            type(optimizer) is SGD and group["fused"] for group in optimizer.param_groups
        )
    else:
        on_device = all("capturable" in group for group in optimizer.param_groups)
    if not on_device:
        return f"{name} may compute on the host; FusedAdam, torch's Adam and AdamW, and SGD(fused=True) do not"
    hooks = [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
    if any(not isinstance(getattr(hook, "__self__", None), StepGuard) for hook in hooks):
        return f"{name} has step hooks, which run on the host"
    return None
