"""A script that trains in a child process, kills it at random moments, and lets another go on: ``kills.py cache out n``.

Children are forked from a process that has imported everything but computed nothing, so that a life costs little.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.scenes import tiny_module, tiny_scene, trainer

STEPS, LONGEST_LIFE = 300, 12


class Pulse(L.Callback):
    """Writes a byte per step."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def on_train_batch_end(self, *args: Any) -> None:
        os.write(self.pipe, b".")


def train(cache: Path, folder: Path, pipe: int) -> None:
    torch.manual_seed(0)
    checkpoints = ModelCheckpoint(folder, every_n_train_steps=2, save_last=True)
    fit = trainer(folder, max_steps=STEPS, enable_checkpointing=True, callbacks=[Pulse(pipe), checkpoints])
    fit.fit(tiny_module(), tiny_scene(cache), ckpt_path="last")
    fit.save_checkpoint(folder / "final.ckpt")


def life(cache: Path, folder: Path, steps: int | None, wait: float) -> int:
    """Train in a child that dies after so many steps and seconds, or None: by itself; its exit status."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        train(cache, folder, write)
        os._exit(0)
    os.close(write)
    seen = 0
    while steps is None or seen < steps:
        chunk = os.read(read, 1)
        if not chunk:  # it ended
            break
        seen += 1
    if steps is not None:
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    os.close(read)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(cache: Path, out: Path, kills: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chance = random.Random(0)
    assert life(cache, out / "whole", None, 0) == 0
    for _ in range(kills):
        status = life(cache, out / "killed", chance.randint(1, LONGEST_LIFE), chance.uniform(0, 0.03))
        assert status == -signal.SIGKILL, status
        assert not (out / "killed" / "final.ckpt").exists()
        last = out / "killed" / "last.ckpt"
        if last.exists():
            print("killed; last.ckpt is of step", torch.load(last, weights_only=True)["global_step"], flush=True)
    assert life(cache, out / "killed", None, 0) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
