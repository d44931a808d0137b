"""Lightning's private names, and public ones without types: one file that tells what a new version may break."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer import call
from torch import nn
from torch.optim import Optimizer

RUNNING_HOOK = "_current_fx_name"  # attribute of a LightningModule that Lightning sets some forty times a step
_NOTHING = nullcontext()


def callbacks(trainer: L.Trainer) -> list[Callback]:
    """The Trainer's callbacks; a list that may be changed."""
    return trainer.callbacks  # type: ignore[attr-defined]


def set_callbacks(trainer: L.Trainer, given: list[Callback]) -> None:
    """Exchange the Trainer's callbacks."""
    trainer.callbacks = given  # type: ignore[attr-defined]


def attached_trainer(module: L.LightningModule | None) -> L.Trainer | None:
    """The Trainer of a module, if it has one."""
    return None if module is None else cast("L.Trainer | None", module._trainer)


def datamodule(trainer: L.Trainer | None) -> object:
    """The Trainer's data module, or None."""
    return getattr(trainer, "datamodule", None)


def batches_done(trainer: L.Trainer) -> int:
    """Batches of the fit so far, over epochs and resumed runs."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def batch_of_epoch(trainer: L.Trainer) -> int:
    """Number of the batch within its epoch."""
    return trainer.fit_loop.epoch_loop.batch_idx


def logged_step(trainer: L.Trainer) -> int:
    """The step that Lightning names to loggers: optimizer steps before this one."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def accumulates(trainer: L.Trainer) -> bool:
    """Whether this batch's gradients are kept for a later update."""
    return trainer.fit_loop._should_accumulate()


def overfit_batches(trainer: L.Trainer) -> int | float:
    """The flag of this name."""
    return trainer.overfit_batches  # type: ignore[attr-defined]


def fast_dev_run(trainer: L.Trainer) -> bool:
    """Whether the run is a trial that leaves no files."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def num_nodes(trainer: L.Trainer) -> int:
    """The flag of this name."""
    return trainer._accelerator_connector._num_nodes_flag


def detects_anomaly(trainer: L.Trainer) -> bool:
    """The flag ``detect_anomaly``."""
    return bool(getattr(trainer, "_detect_anomaly", False))


def scaler_of(plugin: Precision) -> Any:
    """The GradScaler of a precision plugin, or None; ``Any``, because torch's and a user's share no class."""
    return getattr(plugin, "scaler", None)


def unscales_by_itself(optimizer: Optimizer) -> bool:
    """Whether an optimizer takes scaled gradients, as fused ones do."""
    return _optimizer_handles_unscaling(optimizer)


def before_optimizer_step(trainer: L.Trainer, optimizer: Optimizer) -> None:
    """Run the hooks of this name, of callbacks and module."""
    call._call_callback_hooks(trainer, "on_before_optimizer_step", optimizer)
    call._call_lightning_module_hook(trainer, "on_before_optimizer_step", optimizer)


def clip_gradients(trainer: L.Trainer, optimizer: Optimizer) -> None:
    """Run the module's hook ``configure_gradient_clipping`` with the Trainer's flags."""
    options = {
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": trainer.gradient_clip_algorithm,
    }
    call._call_lightning_module_hook(trainer, "configure_gradient_clipping", optimizer, **options)


def share_state(module: nn.Module) -> None:
    """Give all ranks the parameters and buffers of rank 0."""
    _sync_module_states(module)


def ignored_by_ddp(module: nn.Module, names: list[str]) -> None:
    """Keep buffers as each rank has them: DDP's wrapper would give all ranks those of rank 0."""
    module._ddp_params_and_buffers_to_ignore = names  # type: ignore[assignment]


def wrapper_options(strategy: object) -> Mapping[str, object]:
    """Arguments of a DDPStrategy that are meant for DistributedDataParallel."""
    return strategy._ddp_kwargs  # type: ignore[attr-defined]


def syncs_layers(strategy: object) -> bool:
    """Whether a strategy was told to synchronize batch norm."""
    return strategy._layer_sync is not None  # type: ignore[attr-defined]


def silence_profiler(trainer: L.Trainer) -> None:
    """Spare the host some fifty context managers a step around nothing, 55 us; :func:`restore_profiler` undoes it."""
    profiler = trainer.profiler  # type: ignore[attr-defined]
    if type(profiler) is PassThroughProfiler:
        profiler.profile = lambda action_name: _NOTHING  # type: ignore[method-assign]


def restore_profiler(trainer: L.Trainer) -> None:
    """Undo :func:`silence_profiler`."""
    vars(trainer.profiler).pop("profile", None)  # type: ignore[attr-defined]


def ask_for_sigterm_every(trainer: L.Trainer, batches: int) -> None:
    """Have ranks ask seldom whether rank 0 got a SIGTERM; :func:`ask_for_sigterm_always` undoes it.

    Lightning (2.6 and later) asks before each batch and reads the answer from the device, for which the host waits.
    """

    def ask_seldom(ask: Callable[[], None]) -> None:
        if batches_done(trainer) % batches == 0:  # on all ranks alike
            ask()

    ask_for_sigterm_through(trainer, ask_seldom)


def ask_for_sigterm_through(trainer: L.Trainer, through: Callable[[Callable[[], None]], None]) -> None:
    """Have ``through(ask)`` called where Lightning, since 2.6, asks before each batch whether rank 0 got a SIGTERM."""
    loop = trainer.fit_loop.epoch_loop
    ask: Callable[[], None] | None = getattr(loop, "_broadcast_sigterm_tensor", None)
    if ask is not None:
        vars(loop)["_broadcast_sigterm_tensor"] = lambda: through(ask)


def ask_for_sigterm_always(trainer: L.Trainer) -> None:
    """Undo :func:`ask_for_sigterm_every`."""
    vars(trainer.fit_loop.epoch_loop).pop("_broadcast_sigterm_tensor", None)


def set_received_sigterm(trainer: L.Trainer, received: bool) -> None:
    """Tell the loop, which looks behind each step, whether this process was asked to end."""
    trainer._signal_connector.received_sigterm = received


def set_logs_hyperparams(module: L.LightningModule, logs: bool) -> None:
    """Whether loggers are given the module's hyper-parameters."""
    module._log_hyperparams = logs


def set_root_device(strategy: object, device: torch.device) -> None:
    """Where a strategy for one device puts the module."""
    strategy._root_device = device  # type: ignore[attr-defined]


def device_of(trainer: L.Trainer) -> torch.device:
    """Where the Trainer's strategy puts the module."""
    return trainer.strategy.root_device


def is_weight_averaging(callback: Callback) -> bool:
    """Whether a callback is Lightning's ``WeightAveraging`` (from 2.6 on) or a subclass."""
    kind = getattr(lightning_callbacks, "WeightAveraging", None)
    return kind is not None and isinstance(callback, kind)


def averages_buffers(averaging: Any) -> bool:
    """Whether a ``WeightAveraging`` was made with ``use_buffers=True``, its default."""
    return bool(averaging._use_buffers)


def average_weights_only(averaging: Any) -> None:
    """Set ``use_buffers=False``; before the callback's ``setup``."""
    averaging._use_buffers = False


def averaged_copy(averaging: Any) -> nn.Module | None:
    """The module that holds the averages of a ``WeightAveraging``; None before a fit."""
    model = averaging._average_model
    return None if model is None else model.module
