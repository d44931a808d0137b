"""Checkpoints of versions whose fields knew no contraction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_nerf.fields import RadianceField
from lightning_nerf.modules import InstantNGP
from lightning_nerf.scene_box import SceneBox
from tests.executors.fits import PlainField
from tests.scenes import tiny_module, tiny_scene, trainer

pytestmark = pytest.mark.filterwarnings("ignore:(The dirpath has changed|Checkpoint directory)")


@pytest.fixture
def older(tmp_path: Path, scene_cache: Path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint without the buffer, and what else it holds."""
    run = trainer(tmp_path, max_steps=4)
    run.fit(tiny_module(), tiny_scene(scene_cache))
    run.save_checkpoint(tmp_path / "new.ckpt")
    checkpoint = torch.load(tmp_path / "new.ckpt", weights_only=True)
    assert checkpoint["state_dict"].pop("field.contraction").dtype == torch.int8
    if "raw_weights" in checkpoint:
        assert "field.contraction" not in checkpoint["raw_weights"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    return tmp_path / "old.ckpt", checkpoint


def assert_holds(module: InstantNGP, checkpoint: dict[str, Any]) -> None:
    state = module.state_dict()
    assert state["field.contraction"] == 0
    for name, value in checkpoint["state_dict"].items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0, equal_nan=True, msg=name)
    assert module.field.scene_box.contraction == "none"


def test_load_from_checkpoint(older: tuple[Path, dict[str, Any]]) -> None:
    path, checkpoint = older
    module = InstantNGP.load_from_checkpoint(path)
    assert_holds(module, checkpoint)
    assert module.field.affine.isfinite().all()


def test_a_fit_goes_on_and_its_own_checkpoint_has_the_buffer(
    older: tuple[Path, dict[str, Any]], tmp_path: Path, scene_cache: Path
) -> None:
    path, _ = older
    run = trainer(tmp_path, max_steps=6)
    run.fit(tiny_module(), tiny_scene(scene_cache), ckpt_path=path)
    assert run.global_step == 6
    run.save_checkpoint(tmp_path / "later.ckpt")
    assert torch.load(tmp_path / "later.ckpt", weights_only=True)["state_dict"]["field.contraction"] == 0


def test_a_fit_goes_on_as_it_does_from_a_new_one(
    older: tuple[Path, dict[str, Any]], tmp_path: Path, scene_cache: Path
) -> None:
    states = []
    for path in (older[0], tmp_path / "new.ckpt"):
        module = tiny_module()
        trainer(tmp_path, max_steps=6).fit(module, tiny_scene(scene_cache), ckpt_path=path)
        states.append(module.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_test_run(older: tuple[Path, dict[str, Any]], tmp_path: Path, scene_cache: Path) -> None:
    path, checkpoint = older
    module = tiny_module()
    trainer(tmp_path).test(module, tiny_scene(scene_cache), ckpt_path=path, verbose=False)
    assert_holds(module, checkpoint)


@pytest.mark.parametrize("strict", [True, False])
def test_the_modules_and_the_fields_own_load_state_dict(older: tuple[Path, dict[str, Any]], strict: bool) -> None:
    _, checkpoint = older
    module = tiny_module()
    keys = module.load_state_dict(checkpoint["state_dict"], strict=strict)
    assert (keys.missing_keys, keys.unexpected_keys) == ([], [])
    assert_holds(module, checkpoint)
    of_field = {k.removeprefix("field."): v for k, v in checkpoint["state_dict"].items() if k.startswith("field.")}
    alone = tiny_module().field
    before = dict(of_field)
    alone.load_state_dict(of_field, strict=strict)
    assert of_field.keys() == before.keys()  # the caller's dict is left as it is
    assert torch.equal(alone.aabb, checkpoint["state_dict"]["field.aabb"])
    assert alone.scene_box.contraction == "none"


@pytest.mark.parametrize("contraction", ["none", "l2", "linf"])
def test_a_new_one_brings_its_contraction(contraction: str) -> None:
    make: Callable[[], RadianceField] = PlainField
    field, loaded = make(), make()
    field.bind(SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 2]]), contraction))
    loaded.load_state_dict(field.state_dict())
    assert loaded.scene_box.contraction == contraction
    points = torch.tensor([[0.0, 0.5, 1.0], [5.0, -3.0, 1.0]])
    assert torch.equal(loaded.unit_positions(points), field.unit_positions(points))


def test_a_field_that_knows_no_scene_loads_too() -> None:
    field = PlainField()
    state = {name: value for name, value in PlainField().state_dict().items() if name != "contraction"}
    field.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"PlainField knows no scene box: call bind"):
        _ = field.scene_box
