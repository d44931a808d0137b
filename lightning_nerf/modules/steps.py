"""The step as an executor runs it: its number, and the samples that it has seen."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_nerf import lightning_names
from lightning_nerf.checks import BadArgument
from lightning_nerf.executors import EAGER, Executor, Window
from lightning_nerf.modules.checkpoints import CheckpointedModule
from lightning_nerf.ops.random import make_key
from lightning_nerf.types import RayBatch


class SteppedModule(CheckpointedModule):
    """A :class:`~lightning_nerf.executors.StepProgram`: draws are functions of ``key``, which names seed, rank and step."""

    key: Tensor  # [3] int64: seed, rank, step
    samples_seen: Tensor  # [] int64: samples with gradient since it was set to zero; not saved
    idle: Tensor  # [] float32: 1 while no batch since the last update had samples, else 0; not saved
    _named = (-1, -1, -1)  # the step and rank that `key` holds, and the version of `key` that does
    _counted = False  # whether a batch since the last update has gone through `step_loss`, so that `idle` says something

    def count_steps(self, seed: int) -> None:
        """Register what steps are named and counted with."""
        self.register_buffer("key", make_key(seed))
        self.register_buffer("samples_seen", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("idle", torch.ones((), dtype=torch.float32), persistent=False)
        lightning_names.ignored_by_ddp(self, ["samples_seen", "idle"])

    def render_loss(self, batch: RayBatch | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, or of the step's own rays, and device scalars."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the running hook some forty times a step; nn.Module would take 2 us for each.
        if name in (lightning_names.RUNNING_HOOK, "_named", "_counted"):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def executor(self) -> Executor:
        """The strategy's executor; an eager one where the strategy has none."""
        trainer = lightning_names.attached_trainer(self)
        if trainer is None:
            raise BadArgument(
                f"training_step: {type(self).__name__} has no Trainer to run it; call trainer.fit(module, datamodule=...)"
            )
        return getattr(trainer.strategy, "executor", EAGER)

    # -- the program -------------------------------------------------------------------------------------------------

    def name_step(self, step: int | None = None, rank: int | None = None) -> None:
        """Have ``key`` hold this process's rank and this batch's number, where it does not already, or those given.

        The number counts batches, not optimizer steps: accumulated micro-batches differ, and a resumed run goes on. With
        ``overfit_batches`` it comes round again, and with it the batch.
        """
        if step is None:
            step = lightning_names.batches_done(self.trainer)
            repeated = int(lightning_names.overfit_batches(self.trainer))
            step = step % repeated if repeated else step
        rank = self.global_rank if rank is None else rank
        named_step, named_rank, version = self._named
        # DDP's wrapper gives all ranks the buffers of rank 0 before each step, and the version does not tell.
        unknown = version != self.key._version or self.trainer.strategy.model is not self
        if unknown or named_rank != rank:
            self.key[1].fill_(rank)
        if unknown or named_step != step:
            self.key[2].fill_(step)
        self._named = (step, rank, self.key._version)
        self.begin_step(step // self.trainer.accumulate_grad_batches)

    def begin_step(self, update: int) -> None:
        """Prepare what in Python depends on the number of the update that this batch counts to; see :attr:`variant`."""

    @property
    def variant(self) -> Hashable:
        """Which of a few kinds of step this batch is: steps of one kind do the same."""
        return None

    def step_loss(self, batch: RayBatch | None) -> tuple[Tensor, dict[str, Tensor]]:
        """:meth:`render_loss`, and a count of the samples."""
        loss, logs = self.render_loss(batch)
        if "n_samples" in logs:
            self.samples_seen.add_(logs["n_samples"])
            self.idle.mul_(logs["n_samples"] == 0)
        else:
            self.idle.zero_()
        self._counted = True
        return loss, logs

    def backward_step(self, loss: Tensor) -> None:
        """The backward pass, as Lightning runs it."""
        self.backward(loss)

    def advance_key(self) -> None:
        """Have ``key`` hold the next batch's number: the last thing that a captured step does."""
        self.key[2].add_(1)

    def step_replayed(self) -> None:
        """Note that a replay has done :meth:`step_loss` and :meth:`advance_key`."""
        self._counted = True
        step, rank, _ = self._named
        self._named = (step + 1, rank, self.key._version)

    def window(self) -> Window:
        """The window of accumulation that this batch belongs to."""
        size = self.trainer.accumulate_grad_batches
        return Window(size, lightning_names.batch_of_epoch(self.trainer) % size)

    def state(self) -> nn.Module:
        """This module: a step reads its parameters and buffers."""
        return self

    # -- the update --------------------------------------------------------------------------------------------------

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Let the optimizer skip the update for which no batch had samples, on any rank."""
        reduced = getattr(self.trainer.strategy, "reduces_idle", False)
        if self._counted and self.trainer.world_size > 1 and not reduced:
            torch.distributed.all_reduce(self.idle, torch.distributed.ReduceOp.MIN)
        optimizer.idle = self.idle if self._counted else None  # type: ignore[attr-defined]
        self._counted = False
        scaled = lightning_names.scaler_of(self.trainer.precision_plugin) is not None
        if scaled and not lightning_names.unscales_by_itself(optimizer):
            self._note_overflow(optimizer)

    def _note_overflow(self, optimizer: Optimizer) -> None:
        """Count the update for which a scaler will not call the optimizer, whose :class:`StepGuard` then sees nothing."""
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if grads:
            overflow = ~torch.nn.utils.get_total_norm(grads, norm_type=float("inf")).isfinite()
            self.idle.masked_fill_(overflow, 1)
            skipped = getattr(optimizer, "skipped", None)
            if skipped is not None:
                skipped.add_(overflow)

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As in :class:`LightningModule`; without a scaler also for an optimizer that could unscale by itself.

        Overridden here and not in ``configure_gradient_clipping``, so that an override of that one, which a graph may be
        unable to hold, is always a user's own.
        """
        plugin = self.trainer.precision_plugin
        value = self.trainer.gradient_clip_val if gradient_clip_val is None else gradient_clip_val
        if not value or not isinstance(plugin, MixedPrecision) or not lightning_names.unscales_by_itself(optimizer):
            super().clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        if plugin.scaler is not None:
            raise BadArgument(
                f"gradient_clip_val: with precision={plugin.precision!r} {type(optimizer).__name__} unscales gradients "
                f"inside its update, after they would be clipped; expected precision='bf16-mixed', an optimizer that is "
                f"not fused, or no clipping, got {value}"
            )
        algorithm = gradient_clip_algorithm or self.trainer.gradient_clip_algorithm or "norm"
        Precision.clip_gradients(plugin, optimizer, value, GradClipAlgorithmType(algorithm))
