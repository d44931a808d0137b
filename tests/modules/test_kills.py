from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.scenes import tiny_scene

ROOT = Path(__file__).parents[2]


def same(a: Any, b: Any, where: str) -> None:
    """Equal to the bit, all the way down."""
    if isinstance(a, Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), where
        assert a.cpu().numpy().tobytes() == b.cpu().numpy().tobytes(), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks")
def test_twenty_kills_change_nothing(tmp_path: Path, scene_cache: Path) -> None:
    """After 20 times ``kill -9`` at random moments and ``ckpt_path="last"``, the run ends where it would have ended."""
    tiny_scene(scene_cache).prepare_data()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "tests.modules.kills", str(scene_cache), str(tmp_path), "20"]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    steps = [int(line.rsplit(" ", 1)[1]) for line in result.stdout.splitlines() if line.startswith("killed")]
    assert len(steps) >= 18  # one or two may die before the first checkpoint
    assert steps == sorted(steps)
    assert steps[-1] >= 40  # each life began where the last one had saved, not from scratch

    whole, killed = (torch.load(tmp_path / run / "final.ckpt", weights_only=True) for run in ("whole", "killed"))
    assert whole["global_step"] == 300
    for key in ("state_dict", "raw_weights", "optimizer_states", "lr_schedulers", "global_step", "hyper_parameters"):
        same(whole[key], killed[key], key)
