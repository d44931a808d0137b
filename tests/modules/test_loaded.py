"""What a module without a Trainer, such as a loaded one, can do; and what its errors say to call instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_nerf import InstantNGP, NeRFDataModule
from tests.scenes import tiny_module, tiny_scene, trainer

VIEW = r"module.render_view\('test', 0, datamodule=NeRFDataModule.load_from_checkpoint\('the same.ckpt'\)\)"
FIT = r"trainer.fit\(module, datamodule=...\)"
BOUNDS = r"module.render_camera\(cameras.bounded\(near, far\), index, background\)"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, scene_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("loaded")
    run = trainer(folder, max_steps=3)
    run.fit(tiny_module(), tiny_scene(scene_cache))
    run.save_checkpoint(folder / "tiny.ckpt")
    return folder / "tiny.ckpt"


def test_a_loaded_module_renders_the_views_of_loaded_data(checkpoint: Path, tmp_path: Path) -> None:
    module, data = InstantNGP.load_from_checkpoint(checkpoint), NeRFDataModule.load_from_checkpoint(checkpoint)
    alone = module.render_view("test", 1, datamodule=data)
    run = trainer(tmp_path)
    run.test(module, data, verbose=False)
    assert torch.equal(alone.rgb, module.render_view("test", 1).rgb)
    cameras = data.scene("test").cameras
    assert torch.equal(alone.rgb, InstantNGP.load_from_checkpoint(checkpoint).render_camera(cameras, 1, torch.ones(3)).rgb)


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        (lambda module, data: module.render_view("test", 0), VIEW),
        (lambda module, data: module.eval_background(), VIEW),
        (lambda module, data: module.test_step((0, "r_0"), 0), VIEW),
        (lambda module, data: module.validation_step((0, "r_0"), 0), VIEW),
        (lambda module, data: module.predict_step((0, "r_0"), 0), VIEW),
        (lambda module, data: module.draw(), FIT),
        (lambda module, data: module.render_loss(), FIT),
        (lambda module, data: module.training_step(0, 0), FIT),
        (lambda module, data: module.render_camera(data.scene("test").cameras._replace(bounds=None), 0), BOUNDS),
    ],
)
def test_what_needs_a_trainer_names_the_call_to_make_instead(
    call: Callable[[InstantNGP, NeRFDataModule], object], instead: str, checkpoint: Path
) -> None:
    module, data = InstantNGP.load_from_checkpoint(checkpoint), NeRFDataModule.load_from_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=rf"InstantNGP has no Trainer.*call.* {instead}"):
        call(module, data)


def test_data_of_another_kind_are_refused_by_name(checkpoint: Path) -> None:
    with pytest.raises(TypeError, match="datamodule: expected NeRFDataModule or None, got str"):
        InstantNGP.load_from_checkpoint(checkpoint).render_view("test", 0, "lego")  # type: ignore[arg-type]
