"""Lightning strategies with an executor: any, or the one that replays training steps from CUDA graphs.

Importing this module, or ``lightning_nerf.modules``, registers ``nerf_cuda_graph`` and ``nerf_cuda_graph_ddp``, names for
``Trainer(strategy=...)``. docs/cuda-graphs.md has the measurements behind them.
"""

from __future__ import annotations

from lightning.pytorch.strategies import StrategyRegistry

from lightning_nerf.strategies.cuda_graph import CUDAGraphStrategy
from lightning_nerf.strategies.cuda_graph_ddp import CUDAGraphDDPStrategy
from lightning_nerf.strategies.executor import ExecutorDDPStrategy, ExecutorStrategy

__all__ = ["CUDAGraphDDPStrategy", "CUDAGraphStrategy", "ExecutorDDPStrategy", "ExecutorStrategy"]


def register() -> None:
    """Make the strategies known to ``Trainer(strategy=...)``."""
    for strategy in (CUDAGraphStrategy, CUDAGraphDDPStrategy):
        description = (strategy.__doc__ or "").splitlines()[0]
        StrategyRegistry.register(strategy.strategy_name, strategy, description=description, override=True)


register()
