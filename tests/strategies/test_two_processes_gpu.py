"""Two processes with a GPU each, over NCCL; where there is one GPU, both on it, over gloo: NCCL refuses that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from tests.scenes import tiny_scene

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parent.parent.parent
STEPS = 500

RUN = """
import sys
from pathlib import Path
import torch
import lightning as L
from lightning_nerf.bench.processes import compare
from lightning_nerf.callbacks import OccupancyGridUpdate, RayBudget, Telemetry
from lightning_nerf.strategies import CUDAGraphDDPStrategy
from lightning.pytorch.strategies import DDPStrategy
from tests.scenes import fused_module, tiny_scene, trainer

cache, out, kind, nodes, backend, steps = *sys.argv[1:5], sys.argv[5], int(sys.argv[6])
class Ends(L.Callback):
    def on_train_end(self, trainer, module):
        executor = trainer.strategy.executor if kind == "graphs" else None
        seen = {"captures": getattr(executor, "captures", 0), "samples": int(module.samples_seen)}
        seen["skipped"] = int(trainer.optimizers[0].skipped)
        seen["occupied"] = float(module.estimator.occupied_share())
        torch.save({**seen, **compare(trainer, module)}, f"{out}/{kind}.{trainer.global_rank}.pt")
strategy = {"graphs": CUDAGraphDDPStrategy, "ddp": DDPStrategy}[kind](process_group_backend=backend)
run = trainer(Path(out), accelerator="gpu", devices=2 // int(nodes), num_nodes=int(nodes), strategy=strategy,
              max_steps=steps, precision="bf16-mixed",
              callbacks=[OccupancyGridUpdate(every_n_steps=16), RayBudget(), Telemetry(10), Ends()])
run.fit(fused_module(), tiny_scene(cache))
"""


@pytest.mark.parametrize("kind", ["graphs", "ddp"])
def test_two_processes_train_one_field(tmp_path: Path, scene_cache: Path, kind: str) -> None:
    tiny_scene(scene_cache).setup("fit")  # rendered once, not by both
    (tmp_path / "run.py").write_text(RUN)
    nodes, backend = (1, "nccl") if torch.cuda.device_count() > 1 else (2, "gloo")
    command = [sys.executable, "run.py", str(scene_cache), str(tmp_path), kind, str(nodes), backend, str(STEPS)]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "PYTHONPATH": _path()}
    ranks = []
    for rank in range(2):
        own = {"NODE_RANK": str(rank if nodes == 2 else 0), "LOCAL_RANK": str(rank if nodes == 1 else 0)}
        ranks.append(subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **shared, **own}))
    try:
        assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    seen: list[dict[str, Any]] = [torch.load(tmp_path / f"{kind}.{rank}.pt") for rank in range(2)]
    assert seen[0]["processes"] == 2
    for rank in seen:
        assert rank["unequal"] == []
        assert rank["tensors"] > 10
        assert rank["rays_alike"] < 0.2  # of 6 x 24 x 24 pixels
        assert rank["skipped"] == 0
        assert rank["samples"] > 0
        assert 0 < rank["occupied"] < 1
        assert (rank["captures"] > 0) == (kind == "graphs")
    assert seen[0]["samples"] != seen[1]["samples"]


def _path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
