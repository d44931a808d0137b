"""How the device's share of a training step runs: as it comes, or replayed from CUDA graphs."""

from lightning_nerf.executors.base import Executor, StepProgram, Window
from lightning_nerf.executors.cuda_graph import CUDAGraphExecutor
from lightning_nerf.executors.eager import EAGER, EagerExecutor

__all__ = ["EAGER", "CUDAGraphExecutor", "EagerExecutor", "Executor", "StepProgram", "Window"]
