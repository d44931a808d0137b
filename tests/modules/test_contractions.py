"""A field sees space as it was trained to: another contraction is refused, wherever it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_nerf.checks import BadArgument
from lightning_nerf.data import NeRFDataModule
from lightning_nerf.modules import InstantNGP
from tests.scenes import tiny_module, tiny_scene, trainer

pytestmark = pytest.mark.filterwarnings("ignore:(The dirpath has changed|Checkpoint directory)")


def contracted(cache: Path) -> NeRFDataModule:
    return NeRFDataModule(tiny_scene(cache).source, contraction="l2")


def test_another_contraction_is_refused(tmp_path: Path, scene_cache: Path) -> None:
    run = trainer(tmp_path, max_steps=1)
    run.fit(tiny_module(), tiny_scene(scene_cache))
    run.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(BadArgument, match="contraction: the checkpoint's is 'none', expected 'l2'"):
        trainer(tmp_path, max_steps=2).fit(tiny_module(), contracted(scene_cache), ckpt_path=tmp_path / "own.ckpt")
    with pytest.raises(BadArgument, match="contraction: the data module's is 'l2', expected 'none'"):
        trainer(tmp_path, max_steps=2).fit(InstantNGP.load_from_checkpoint(tmp_path / "own.ckpt"), contracted(scene_cache))
    trainer(tmp_path, max_steps=2).fit(tiny_module(), tiny_scene(scene_cache), ckpt_path=tmp_path / "own.ckpt")
