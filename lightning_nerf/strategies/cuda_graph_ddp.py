"""Several devices, a process each, whose steps are replayed from CUDA graphs."""

from __future__ import annotations

from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from lightning_nerf import lightning_names
from lightning_nerf.checks import BadArgument
from lightning_nerf.executors import CUDAGraphExecutor
from lightning_nerf.strategies._replay import ReplayedSteps

LARGE = 2**18  # elements from which on a gradient is reduced where it lies
ASKED_EVERY = 32  # batches between two questions whether rank 0 was told to end


class CUDAGraphDDPStrategy(ReplayedSteps, DDPStrategy):
    """One process per device; replayed steps, between whose two graphs the mean of the gradients is taken.

    The module is not wrapped in DistributedDataParallel, whose hooks no graph can hold: parameters and buffers are given to
    all ranks once, at the start, and gradients are reduced after each window of accumulation. All ranks must have gradients
    of the same parameters.

    Args:
        warmup_steps: eager batches at the start of every fit, >= 1.
        kwargs: of DDPStrategy; those for the wrapper are refused.
    """

    strategy_name = "nerf_cuda_graph_ddp"
    reduces_idle = True  # so that the module need not

    def __init__(self, warmup_steps: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        CUDAGraphExecutor(warmup_steps)
        self.warmup_steps = warmup_steps
        hooks = ("ddp_comm_state", "ddp_comm_hook", "ddp_comm_wrapper", "model_averaging_period")
        refused = [*lightning_names.wrapper_options(self), *(name for name in hooks if kwargs.get(name) is not None)]
        if refused:
            raise BadArgument(
                f"strategy='nerf_cuda_graph_ddp' has no DistributedDataParallel to give {', '.join(refused)} to: leave it "
                "out, or use strategy='ddp'"
            )

    def setup(self, trainer: L.Trainer) -> None:
        """See :meth:`Strategy.setup`; refuses what cannot work."""
        if lightning_names.syncs_layers(self):
            raise BadArgument("sync_batchnorm=True is not for strategy='nerf_cuda_graph_ddp': use strategy='ddp'")
        self._checked = False
        super().setup(trainer)

    def _skip_bookkeeping(self, trainer: L.Trainer) -> None:
        """Also ask seldom what Lightning asks before each batch: whether rank 0 got a SIGTERM."""
        super()._skip_bookkeeping(trainer)
        lightning_names.ask_for_sigterm_every(trainer, ASKED_EVERY)

    def teardown(self) -> None:
        """Give the loop its own question back."""
        if (trainer := lightning_names.attached_trainer(self.lightning_module)) is not None:
            lightning_names.ask_for_sigterm_always(trainer)
        super().teardown()

    def configure_ddp(self) -> None:
        """Give all ranks the parameters and buffers of rank 0, in place of wrapping the module."""
        assert self.model is not None
        lightning_names.share_state(self.model)

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Take the mean of the gradients over all ranks, in place, where an update follows. The host does not wait.

        ``module.idle`` goes with them, which spares a reduction of its own: 1 where it is 1 on all ranks, else 0.
        """
        module = self.trained_module()
        idle = cast(Tensor, module.idle)
        if self.world_size == 1 or lightning_names.accumulates(module.trainer):
            return
        grads = [p.grad for p in module.parameters() if p.requires_grad and p.grad is not None]
        if not self._checked:
            self._check_alike([name for name, p in module.named_parameters() if p.grad is not None])
        small = [idle, *(g for g in grads if g.numel() < LARGE)]
        flat = torch.cat([g.reshape(-1) for g in small])
        averages = torch.distributed.get_backend() == "nccl"  # gloo only sums
        op = torch.distributed.ReduceOp.AVG if averages else torch.distributed.ReduceOp.SUM
        for tensor in (*(g for g in grads if g.numel() >= LARGE), flat):
            torch.distributed.all_reduce(tensor, op)
            if not averages:
                tensor.div_(self.world_size)
        pieces = flat.split([g.numel() for g in small])
        means = [piece.view_as(g) for piece, g in zip(pieces, small, strict=True)]
        torch._foreach_copy_(small, means)  # type: ignore[attr-defined]
        torch.gt(idle, 1 - 0.5 / self.world_size, out=idle)  # a mean of ones may miss 1 by a rounding

    def _check_alike(self, names: list[str]) -> None:
        everybodys: list[list[str]] = [[]] * self.world_size
        torch.distributed.all_gather_object(everybodys, names)
        for rank, theirs in enumerate(everybodys):
            if theirs != names:
                odd = sorted(set(theirs) ^ set(names))
                raise RuntimeError(
                    f"ranks {self.global_rank} and {rank} have gradients of different parameters: {', '.join(odd)}; have "
                    "all parameters take part in every loss, or use strategy='ddp_find_unused_parameters_true'"
                )
        self._checked = True
