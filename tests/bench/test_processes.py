"""What the step's benchmark says of several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.test_bench import recipe
from tests.scenes import tiny_scene

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent

COMPARE = """
import json, sys
from types import SimpleNamespace as Some
import torch
from lightning_nerf.bench.processes import compare

rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
module = torch.nn.Linear(3, 2)
torch.nn.init.ones_(module.weight), torch.nn.init.zeros_(module.bias)
module.register_buffer("key", torch.tensor([0, rank, 5]))
module.register_buffer("grid", torch.tensor([True, False]))
module.register_buffer("zero", torch.tensor(-0.0 if rank else 0.0))
optimizer = torch.optim.Adam(module.parameters())
module(torch.ones(1, 3)).sum().backward()
optimizer.step()
if rank == 1:
    optimizer.state[module.bias]["exp_avg"][1] += 1
directions = torch.arange(12.0).view(4, 3)
directions[1:] += rank
module.name_step, module.draw = lambda: None, lambda: Some(rays=Some(directions=directions))
print(json.dumps(compare(Some(world_size=2, optimizers=[optimizer]), module)))
"""


def test_differences_are_found(tmp_path: Path) -> None:
    (tmp_path / "compare.py").write_text(COMPARE)
    command = [sys.executable, "compare.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "group")], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    reports = [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks]
    assert reports[0] == reports[1]
    assert sorted(reports[0]["unequal"]) == ["exp_avg of bias", "zero"]
    assert reports[0]["processes"] == 2
    assert reports[0]["tensors"] == 4 + 6  # weight, bias, grid, zero; two moments and a count of each parameter
    assert reports[0]["rays_alike"] == pytest.approx(0.25)


def bench(cache: Path, folder: Path, *more: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = ["step", *recipe(cache, "--trainer.max_steps=40"), "--from=10", "--to=40", "--output=step.json", *more]
    subprocess.run(
        [sys.executable, "-m", "lightning_nerf", "bench", *arguments], check=True, cwd=folder, env=environment, timeout=300
    )
    return json.loads((folder / "step.json").read_text())


def test_two_processes_train_one_field(tmp_path: Path, scene_cache: Path) -> None:
    tiny_scene(scene_cache, n_train=5, n_test=3).setup("fit")  # rendered once, not by both
    report = bench(scene_cache, tmp_path, "--trainer.devices=2", "--trainer.strategy=ddp")
    seen = report["processes"]
    assert seen["processes"] == 2
    assert seen["unequal"] == []
    assert seen["tensors"] > 10
    assert seen["rays_alike"] < 0.1
    step = report["step"]
    assert step["rays_per_second"] > 1.5 * 1000 * step["n_rays"] / step["ms_per_step"]
