"""The common base of the two strategies of CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies.strategy import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_nerf import lightning_names
from lightning_nerf.executors import EAGER, CUDAGraphExecutor, Executor, StepProgram
from lightning_nerf.strategies._refusals import refuse_combination, refuse_optimizers, why_eager


class ReplayedSteps(Strategy):
    """Base of both strategies. Automatic optimization, all hooks and all flags keep their meaning or are refused."""

    executor: Executor = EAGER
    _graphs: CUDAGraphExecutor | None = None  # the executor of a fit on CUDA
    strategy_name: str
    warmup_steps: int
    _plain_batches = False

    # -- a fit's beginning and end --------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer) -> None:
        """See :meth:`Strategy.setup`; refuses what cannot work."""
        fits = trainer.state.fn == TrainerFn.FITTING
        self.executor, self._graphs = EAGER, None
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
            self.executor = self._graphs = CUDAGraphExecutor(self.warmup_steps)

    def on_train_start(self) -> None:
        """Begin capturing: everything that a checkpoint holds has been restored."""
        super().on_train_start()
        if self._graphs is not None:
            module = self.trained_module()
            optimizer, plugin = self.optimizers[0], self.precision_plugin
            reason = why_eager(optimizer, plugin)
            if reason is not None:
                rank_zero_info(f"{self.strategy_name}: the optimizer's update runs eagerly, because {reason}.")
            self._clips = not is_overridden("configure_gradient_clipping", module)
            scaler = lightning_names.scaler_of(plugin)
            program = cast(StepProgram, module)
            self._graphs.begin(program, optimizer, self._update, scaler, capture_update=reason is None)
            self._skip_bookkeeping(module.trainer)

    def trained_module(self) -> L.LightningModule:
        """The module of the fit."""
        assert self.lightning_module is not None
        return self.lightning_module

    def _skip_bookkeeping(self, trainer: L.Trainer) -> None:
        """Skip Lightning bookkeeping that has no effect here: in a fast step it dominates."""
        lightning_names.silence_profiler(trainer)
        owners = [o for o in (trainer.lightning_module, lightning_names.datamodule(trainer)) if o is not None]
        hooks = ("transfer_batch_to_device", "on_after_batch_transfer")
        self._plain_batches = not any(is_overridden(hook, owner) for owner in owners for hook in hooks)

    def teardown(self) -> None:
        """Give back graphs and memory before the module leaves the device."""
        if self._graphs is not None:
            self._graphs.close()
            self.executor, self._graphs = EAGER, None
        self._plain_batches = False
        if (trainer := lightning_names.attached_trainer(self.lightning_module)) is not None:
            lightning_names.restore_profiler(trainer)
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
        module = self.trained_module()
        loss = self.precision_plugin.pre_backward(closure_loss, module)
        if self.executor.replayed:
            self.executor.attach_gradients()
        else:
            with self.executor.watch_backward():
                self.precision_plugin.backward(loss, module, optimizer, *args, **kwargs)
        self.reduce_gradients()
        loss = self.precision_plugin.post_backward(loss, module)
        self.post_backward(loss)
        return loss

    def reduce_gradients(self) -> None:
        """Combine the gradients of several processes, where an update follows."""

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], object], model: nn.Module | None = None, **kwargs: Any
    ) -> object:
        """See :meth:`Strategy.optimizer_step`; replays the update where the batch was replayed."""
        executor = self._graphs
        if executor is None or executor.stopped:
            return super().optimizer_step(optimizer, closure, model, **kwargs)
        result = closure()
        if not executor.steps:
            executor.stop(f"{type(self.lightning_module).__name__}.training_step does not go through self.executor.step")
        if not executor.captures_update or kwargs or result is None:
            super().optimizer_step(optimizer, lambda: result, model, **kwargs)
            executor.updated_eagerly()
            return result
        trainer = self.trained_module().trainer
        lightning_names.before_optimizer_step(trainer, optimizer)
        if not self._clips:  # the user's own clipping may read what a graph cannot
            lightning_names.clip_gradients(trainer, optimizer)
        executor.update((trainer.gradient_clip_val, trainer.gradient_clip_algorithm))
        return result

    def _update(self) -> None:
        """What follows the hooks in :meth:`Precision.optimizer_step`: graph 2."""
        optimizer, scaler = self.optimizers[0], lightning_names.scaler_of(self.precision_plugin)
        trainer = self.trained_module().trainer
        if self._clips and trainer.gradient_clip_val:
            lightning_names.clip_gradients(trainer, optimizer)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"
