from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_nerf.modules import NeRFModule, WarmupDecay
from tests.scenes import tiny_module, tiny_scene, trainer


def module() -> NeRFModule:
    torch.manual_seed(0)
    return tiny_module(lr_scheduler=lambda optimizer: WarmupDecay(optimizer, 24))


def assert_resumes(make: Callable[[], NeRFModule], folder: Path, cache: Path) -> None:
    """A fit of 24 steps ends with the same bits if it stops after 13 and goes on from a checkpoint."""
    whole = make()
    trainer(folder, max_steps=24).fit(whole, tiny_scene(cache))

    first = trainer(folder, max_steps=13)
    first.fit(make(), tiny_scene(cache))
    first.save_checkpoint(folder / "half.ckpt")
    resumed = make()
    trainer(folder, max_steps=24).fit(resumed, tiny_scene(cache), ckpt_path=folder / "half.ckpt")

    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path: Path, scene_cache: Path) -> None:
    """Weights, moments, schedule, grid, ray budget and draws go on where the checkpoint left them."""
    assert_resumes(module, tmp_path, scene_cache)
