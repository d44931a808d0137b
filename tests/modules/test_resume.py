from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_nerf.modules import InstantNGP, WarmupDecay
from tests.scenes import tiny_module, tiny_scene, trainer


def module() -> InstantNGP:
    torch.manual_seed(0)
    return tiny_module(lr_scheduler=lambda optimizer: WarmupDecay(optimizer, 24))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path: Path, scene_cache: Path) -> None:
    """Weights, moments, schedule, grid, ray budget and draws go on where the checkpoint left them."""
    whole = module()
    trainer(tmp_path, max_steps=24).fit(whole, tiny_scene(scene_cache))

    first = trainer(tmp_path, max_steps=13)
    first.fit(module(), tiny_scene(scene_cache))
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = module()
    trainer(tmp_path, max_steps=24).fit(resumed, tiny_scene(scene_cache), ckpt_path=tmp_path / "half.ckpt")

    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
