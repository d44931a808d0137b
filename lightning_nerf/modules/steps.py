"""Which step it is, and what a step has seen: what executors, callbacks and the optimizer ask a module for."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.executors import EAGER, Executor
from lightning_nerf.modules.checkpoints import CheckpointedModule
from lightning_nerf.ops.random import make_key
from lightning_nerf.types import RayBatch


class SteppedModule(CheckpointedModule):
    """A module whose draws are a function of ``key``, which names the step, and whose steps an :class:`Executor` runs."""

    key: Tensor  # [3] int64: seed, rank, step
    samples_seen: Tensor  # [] int64: samples with gradient since somebody set it to zero; not saved
    idle: Tensor  # [] float32: 1 while no batch since the last update had samples, else 0; not saved
    _named = (-1, -1, -1)  # the step and rank that `key` holds, and the version of `key` that does
    _counted = False  # whether a batch since the last update has gone through `step_loss`, so that `idle` says something

    def count_steps(self, seed: int) -> None:
        """Register what steps are named and counted with."""
        self.register_buffer("key", make_key(seed))
        self.register_buffer("samples_seen", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("idle", torch.ones(()), persistent=False)
        # Each rank's own: DDP's wrapper would give all ranks those of rank 0.
        self._ddp_params_and_buffers_to_ignore = ["samples_seen", "idle"]

    def render_loss(self, batch: RayBatch | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, or of the step's own rays, and device scalars."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the running hook some forty times a step; nn.Module would take 2 us for each.
        if name in ("_current_fx_name", "_named", "_counted"):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Let the optimizer skip the update for which no batch had samples, on any rank."""
        reduced = getattr(self.trainer.strategy, "reduces_idle", False)
        if self._counted and self.trainer.world_size > 1 and not reduced:
            torch.distributed.all_reduce(self.idle, torch.distributed.ReduceOp.MIN)
        optimizer.idle = self.idle if self._counted else None
        self._counted = False
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scaled and not _optimizer_handles_unscaling(optimizer):
            self._note_overflow(optimizer)

    def _note_overflow(self, optimizer: Any) -> None:
        """Count the update for which a scaler will not call the optimizer, whose :class:`StepGuard` then sees nothing."""
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if grads:
            overflow = ~torch.nn.utils.get_total_norm(grads, norm_type=float("inf")).isfinite()
            self.idle.masked_fill_(overflow, 1)
            if hasattr(optimizer, "skipped"):
                optimizer.skipped.add_(overflow)

    def clip_gradients(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As in :class:`LightningModule`; without a scaler also for an optimizer that could unscale by itself.

        Overridden here and not in ``configure_gradient_clipping``, so that an override of that one, which a graph may be
        unable to hold, is always a user's own.
        """
        plugin: Any = self.trainer.precision_plugin
        value = self.trainer.gradient_clip_val if gradient_clip_val is None else gradient_clip_val
        if not value or not isinstance(plugin, MixedPrecision) or not _optimizer_handles_unscaling(optimizer):
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

    @property
    def executor(self) -> Executor:
        """What runs the step: the strategy's, else eager."""
        return getattr(self.trainer.strategy, "executor", EAGER)

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

    def name_step(self, step: int | None = None, rank: int | None = None) -> None:
        """Have ``key`` hold this process's rank and this batch's number, where it does not already, or those given.

        The number counts batches, not optimizer steps: accumulated micro-batches differ, and a resumed run goes on. With
        ``overfit_batches`` it comes round again, and with it the batch.
        """
        if step is None:
            step = self.trainer.fit_loop.epoch_loop.total_batch_idx
            repeated: int = self.trainer.overfit_batches  # type: ignore[attr-defined]
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

    def advance_key(self) -> None:
        """Have ``key`` hold the next batch's number: the last thing that a captured step does."""
        self.key[2].add_(1)

    def step_advanced(self) -> None:
        """Note that a replay has done :meth:`step_loss` and :meth:`advance_key`."""
        self._counted = True
        step, rank, _ = self._named
        self._named = (step + 1, rank, self.key._version)
