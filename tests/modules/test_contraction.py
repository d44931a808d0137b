"""A field that was trained with one contraction of space is not used with another."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_nerf.checks import BadArgument
from lightning_nerf.data import NeRFDataModule
from lightning_nerf.modules import InstantNGP
from tests.scenes import TimedSource, tiny_module, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:(The dirpath has changed|Checkpoint directory)"),
    pytest.mark.filterwarnings("ignore:the training views have times"),
]


def scene(cache: Path, contraction: str) -> NeRFDataModule:
    source = TimedSource(24, n_train=6, n_test=2, cache_dir=str(cache))
    return NeRFDataModule(source, near=2.0, far=6.0, contraction=contraction)


@pytest.fixture
def checkpoint(tmp_path: Path, scene_cache: Path) -> Path:
    run = trainer(tmp_path, max_steps=2)
    run.fit(tiny_module(), scene(scene_cache, "l2"))
    run.save_checkpoint(tmp_path / "l2.ckpt")
    return tmp_path / "l2.ckpt"


def test_a_loaded_module_refuses_data_of_another(checkpoint: Path, tmp_path: Path, scene_cache: Path) -> None:
    module = InstantNGP.load_from_checkpoint(checkpoint)
    with pytest.raises(BadArgument, match=r"contraction: the data module's is 'none', expected 'l2'"):
        trainer(tmp_path).test(module, scene(scene_cache, "none"), verbose=False)
    trainer(tmp_path).test(module, scene(scene_cache, "l2"), verbose=False)


@pytest.mark.parametrize("contraction", ["none", "linf"])
def test_a_fit_refuses_a_checkpoint_of_another(
    checkpoint: Path, tmp_path: Path, scene_cache: Path, contraction: str
) -> None:
    run = trainer(tmp_path, max_steps=4)
    with pytest.raises(BadArgument, match=f"contraction: the checkpoint's is 'l2', expected '{contraction}'"):
        run.fit(tiny_module(), scene(scene_cache, contraction), ckpt_path=checkpoint)
