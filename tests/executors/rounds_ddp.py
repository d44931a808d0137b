"""A script that two processes run: ``rounds_ddp.py cache out``. Each leaves what it saw in ``out/{method}.{rank}.pt``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.types import Placement
from tests.executors.test_rounds import METHODS
from tests.scenes import tiny_scene, trainer


def main(cache: Path, out: Path, method: str) -> None:
    module, places = METHODS[method](), []
    place = module.estimator.place

    def noted(*args: Any, **options: Any) -> Placement:
        placement = place(*args, **options)
        first: Tensor = (placement.rounds or [placement])[0].samples.t_starts
        places.append(first[:64].clone())
        return placement

    module.estimator.place = noted  # type: ignore[method-assign]
    run = trainer(out, max_steps=5, devices=2, strategy="ddp")
    run.fit(module, tiny_scene(cache))
    torch.save({"state": module.state_dict(), "places": places}, out / f"{method}.{run.global_rank}.pt")


if __name__ == "__main__":
    for name in METHODS:
        main(Path(sys.argv[1]), Path(sys.argv[2]), name)
