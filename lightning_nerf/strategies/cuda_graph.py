"""One device whose steps are replayed from CUDA graphs."""

from __future__ import annotations

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import Precision

from lightning_nerf.executors import EAGER, CUDAGraphExecutor
from lightning_nerf.strategies._replay import ReplayedSteps
from lightning_nerf.strategies.executor import ExecutorStrategy


class CUDAGraphStrategy(ReplayedSteps, ExecutorStrategy):
    """One device; training steps are replayed from CUDA graphs. On a CPU every step runs eagerly, with one message.

    So does a step that makes the host wait for the device, if torch's synchronization debug mode sees it in the last eager
    batch. One that it does not see (a native library's own wait, or one that comes later) cannot be captured, which is an
    error that says so.

    Args:
        device: None: the Trainer's.
        accelerator, checkpoint_io, precision_plugin: as in Lightning's strategies.
        warmup_steps: eager batches at the start of every fit, >= 1.
    """

    strategy_name = "nerf_cuda_graph"

    def __init__(
        self,
        device: str | torch.device | None = None,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        warmup_steps: int = 3,
    ) -> None:
        CUDAGraphExecutor(warmup_steps)  # refuses a bad number now
        super().__init__(EAGER, device, accelerator, checkpoint_io, precision_plugin)
        self.warmup_steps = warmup_steps

    def _names(self) -> tuple[str, str]:
        return f"strategy={self.strategy_name!r}", f"strategy='{self.strategy_name}_ddp'"
