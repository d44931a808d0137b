"""What the two strategies of CUDA graphs share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies.strategy import Strategy
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer

from lightning_nerf.executors import EAGER, CUDAGraphExecutor, Executor
from lightning_nerf.strategies._refusals import refuse_combination, refuse_optimizers, why_eager

_NOTHING = nullcontext()


class ReplayedSteps(Strategy):
    """What the two strategies share. Automatic optimisation, all hooks and all flags keep their meaning or are refused."""

    executor: Executor = EAGER
    strategy_name: str
    warmup_steps: int
    _plain_batches = False

    # -- a fit's beginning and end --------------------------------------------------------------------------------------

    def setup(self, trainer: Any) -> None:
        """See :meth:`Strategy.setup`; refuses what cannot work."""
        fits = trainer.state.fn == TrainerFn.FITTING
        self.executor = EAGER
        if fits and not _has_graphs(self.root_device):
            rank_zero_info(
                f"{self.strategy_name}: every step runs eagerly, because CUDA graphs need a CUDA device, not "
                f"{self.root_device}."
            )
        elif fits:
            refuse_combination(self.strategy_name, trainer, self.lightning_module, self.precision_plugin)
        super().setup(trainer)
        if fits and _has_graphs(self.root_device):
            refuse_optimizers(self.strategy_name, self.optimizers)
            self.executor = CUDAGraphExecutor(self.warmup_steps)

    def on_train_start(self) -> None:
        """Begin capturing: everything that a checkpoint holds has been restored."""
        super().on_train_start()
        if isinstance(self.executor, CUDAGraphExecutor):
            module: Any = self.lightning_module
            optimizer, plugin = self.optimizers[0], self.precision_plugin
            reason = why_eager(optimizer, plugin)
            if reason is not None:
                rank_zero_info(f"{self.strategy_name}: the optimizer's update runs eagerly, because {reason}.")
            self._clips = not is_overridden("configure_gradient_clipping", module)
            scaler = getattr(plugin, "scaler", None)
            self.executor.begin(module, optimizer, self._update, scaler, capture_update=reason is None)
            self._lighten(module.trainer)

    def _lighten(self, trainer: Any) -> None:
        """Save the host what nobody sees: in a fast step it would be the slower of the two."""
        if type(trainer.profiler) is PassThroughProfiler:  # some fifty context managers a step around nothing: 55 us
            trainer.profiler.profile = _no_profile  # type: ignore[method-assign]
        owners = [owner for owner in (trainer.lightning_module, trainer.datamodule) if owner is not None]
        hooks = ("transfer_batch_to_device", "on_after_batch_transfer")
        self._plain_batches = not any(is_overridden(hook, owner) for owner in owners for hook in hooks)

    def teardown(self) -> None:
        """Give back graphs and memory before the module leaves the device."""
        if isinstance(self.executor, CUDAGraphExecutor):
            self.executor.close()
            self.executor = EAGER
        self._plain_batches = False
        module: Any = self.lightning_module
        if module is not None and module._trainer is not None:
            vars(module.trainer.profiler).pop("profile", None)
        super().teardown()

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """See :meth:`Strategy.batch_to_device`; a step's number needs no transfer, which would take 20 us."""
        if self._plain_batches and type(batch) is int:
            return batch
        return super().batch_to_device(batch, device, dataloader_idx)

    # -- a step ---------------------------------------------------------------------------------------------------------

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """See :meth:`Strategy.backward`; after a replay the gradients are there already."""
        self.pre_backward(closure_loss)
        module: Any = self.lightning_module
        loss = self.precision_plugin.pre_backward(closure_loss, module)
        if self.executor.replayed:
            self.executor.attach_gradients()  # type: ignore[attr-defined]
        else:
            with self.executor.watch_backward():
                self.precision_plugin.backward(loss, module, optimizer, *args, **kwargs)
        self.reduce_gradients()
        loss = self.precision_plugin.post_backward(loss, module)
        self.post_backward(loss)
        return loss

    def reduce_gradients(self) -> None:
        """Combine the gradients of several processes, where an update follows."""

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """See :meth:`Strategy.optimizer_step`; replays the update where the batch was replayed."""
        executor = self.executor
        if not isinstance(executor, CUDAGraphExecutor) or executor.stopped:
            return super().optimizer_step(optimizer, closure, model, **kwargs)
        result = closure()
        if not executor.steps:
            executor.stop(f"{type(self.lightning_module).__name__}.training_step does not go through self.executor.step")
        if not executor.captures_update or kwargs or result is None:
            super().optimizer_step(optimizer, lambda: result, model, **kwargs)
            executor.updated_eagerly()
            return result
        trainer = self.lightning_module.trainer  # type: ignore[union-attr]
        call._call_callback_hooks(trainer, "on_before_optimizer_step", optimizer)
        call._call_lightning_module_hook(trainer, "on_before_optimizer_step", optimizer)
        if not self._clips:  # the user's own clipping may read what a graph cannot
            self._clip(optimizer)
        executor.update((trainer.gradient_clip_val, trainer.gradient_clip_algorithm))
        return result

    def _clip(self, optimizer: Optimizer) -> None:
        trainer = self.lightning_module.trainer  # type: ignore[union-attr]
        options = {
            "gradient_clip_val": trainer.gradient_clip_val,
            "gradient_clip_algorithm": trainer.gradient_clip_algorithm,
        }
        call._call_lightning_module_hook(trainer, "configure_gradient_clipping", optimizer, **options)

    def _update(self) -> None:
        """What follows the hooks in :meth:`Precision.optimizer_step`: graph 2."""
        optimizer, scaler = self.optimizers[0], getattr(self.precision_plugin, "scaler", None)
        if self._clips and self.lightning_module.trainer.gradient_clip_val:  # type: ignore[union-attr]
            self._clip(optimizer)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()


def _no_profile(action_name: str) -> Any:
    return _NOTHING


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"
