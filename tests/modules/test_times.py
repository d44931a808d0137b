"""A module tells its fields the range of the training views' times, and refuses another range later."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lightning_nerf.callbacks import PSNRLogger, RunResults
from lightning_nerf.callbacks.run_folder import run_folder
from lightning_nerf.checks import BadArgument
from lightning_nerf.data import BlenderData, NeRFDataModule, Scene, SyntheticDynamicScene
from lightning_nerf.modules import InstantNGP
from tests.estimators.test_times import FIRST, LAST, TimedField
from tests.scenes import TimedSource, timed_scene, tiny_module, trainer

pytestmark = pytest.mark.filterwarnings("ignore:(The dirpath has changed|Checkpoint directory)")


class LaterSource(TimedSource):
    """The same, later by some time."""

    def __init__(self, resolution: int, later: float = 1.0, **options: object) -> None:
        super().__init__(resolution, **options)  # type: ignore[arg-type]
        self.later = later

    def read(self, split: str) -> Scene:
        scene = super().read(split)
        assert scene.cameras.times is not None
        return scene._replace(cameras=scene.cameras._replace(times=scene.cameras.times + self.later))


def later_scene(cache: Path, later: float) -> NeRFDataModule:
    return NeRFDataModule(LaterSource(24, later, n_train=6, n_test=2, cache_dir=str(cache)), near=2.0, far=6.0)


BEYOND = "times of the test views go from 3 to 6, but the field knows 2 to 5, .* 1 of 2 views show moments"


class WithinField(TimedField):
    """A field that asks another one, too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TimedField()


@pytest.fixture
def checkpoint(tmp_path: Path, scene_cache: Path) -> Path:
    run = trainer(tmp_path, max_steps=2)
    run.fit(tiny_module(field=WithinField()), timed_scene(scene_cache))
    run.save_checkpoint(tmp_path / "timed.ckpt")
    return tmp_path / "timed.ckpt"


def test_a_fit_tells_fields_the_first_and_the_last_time(checkpoint: Path) -> None:
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name in ("field.time_range", "field.inner.time_range"):
        assert weights[name].tolist() == [FIRST, LAST]
    module = InstantNGP.load_from_checkpoint(checkpoint)
    assert isinstance(module.field, WithinField)
    assert module.field.inner.unit_times(torch.tensor([3.5])).tolist() == [0.5]


def test_a_loaded_module_refuses_to_learn_from_another_range(checkpoint: Path, tmp_path: Path, scene_cache: Path) -> None:
    module = InstantNGP.load_from_checkpoint(checkpoint)
    with pytest.raises(BadArgument, match=r"time_range: the data module's is \[3.0, 6.0\], expected \[2.0, 5.0\]"):
        trainer(tmp_path, max_steps=3).fit(module, later_scene(scene_cache, 1.0))
    trainer(tmp_path, max_steps=3).fit(module, later_scene(scene_cache, 1e-7))  # rounding


def test_a_fit_refuses_a_checkpoint_of_another_range(checkpoint: Path, tmp_path: Path, scene_cache: Path) -> None:
    run = trainer(tmp_path, max_steps=4)
    with pytest.raises(BadArgument, match=r"time_range: the checkpoint's is \[2.0, 5.0\], expected \[3.0, 6.0\]"):
        run.fit(tiny_module(field=WithinField()), later_scene(scene_cache, 1.0), ckpt_path=checkpoint)
    run = trainer(tmp_path, max_steps=4)
    run.fit(module := tiny_module(field=WithinField()), timed_scene(scene_cache), ckpt_path=checkpoint)
    assert module.field.knows_times


def test_a_checkpoint_of_a_version_without_a_range_is_taken(checkpoint: Path, tmp_path: Path, scene_cache: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    for name in ("field.time_range", "field.inner.time_range"):
        del content["state_dict"][name]
    torch.save(content, tmp_path / "older.ckpt")
    assert not InstantNGP.load_from_checkpoint(tmp_path / "older.ckpt").field.knows_times
    trainer(tmp_path, max_steps=4).fit(
        tiny_module(field=WithinField()), timed_scene(scene_cache), ckpt_path=tmp_path / "older.ckpt"
    )


def test_a_resumed_fit_knows_the_range_even_if_its_checkpoint_did_not(
    checkpoint: Path, tmp_path: Path, scene_cache: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    del content["state_dict"]["field.time_range"]
    torch.save(content, tmp_path / "older.ckpt")
    module = tiny_module(field=WithinField())
    trainer(tmp_path, max_steps=4).fit(module, timed_scene(scene_cache), ckpt_path=tmp_path / "older.ckpt")
    assert module.field.time_range.tolist() == [FIRST, LAST]


def test_views_of_other_times_may_be_rendered(checkpoint: Path, tmp_path: Path, scene_cache: Path) -> None:
    loaded, fresh = InstantNGP.load_from_checkpoint(checkpoint), tiny_module(field=WithinField())
    with pytest.warns(UserWarning, match=BEYOND):
        trainer(tmp_path).test(loaded, later_scene(scene_cache, 1.0), verbose=False)
    with pytest.warns(UserWarning, match=BEYOND):
        trainer(tmp_path).test(fresh, later_scene(scene_cache, 1.0), ckpt_path=checkpoint, verbose=False)
    for module in (loaded, fresh):
        assert module.field.time_range.tolist() == [FIRST, LAST]


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_views_of_other_times_are_said_once_for_each_split(
    command: str, checkpoint: Path, tmp_path: Path, scene_cache: Path
) -> None:
    module, data = InstantNGP.load_from_checkpoint(checkpoint), later_scene(scene_cache, 1.0)
    run = trainer(tmp_path, limit_val_batches=1)
    split = "val" if command == "validate" else "test"
    with pytest.warns(UserWarning, match=f"times of the {split} views go from 3 to 6, but the field knows 2 to 5") as said:
        getattr(run, command)(module, datamodule=data)
    assert len([warning for warning in said if "times of the" in str(warning.message)]) == 1
    getattr(run, command)(module, datamodule=data)  # a warning would fail the test


def test_a_fit_warns_once_of_validation_views_at_times_that_it_does_not_learn(tmp_path: Path, scene_cache: Path) -> None:
    source = LaterSource(24, 0.0, n_train=6, n_val=2, n_test=2, cache_dir=str(scene_cache))
    data = NeRFDataModule(source, near=2.0, far=6.0)
    data.setup("fit")
    source.later = 4.0
    data._scenes["val"] = source.read("val")._replace(cameras=source.read("val").cameras.bounded(2.0, 6.0))
    run = trainer(tmp_path, max_steps=2, limit_val_batches=1, val_check_interval=1, num_sanity_val_steps=1)
    with pytest.warns(UserWarning, match="times of the val views go from 6 to 9") as said:
        run.fit(tiny_module(field=WithinField()), data)
    assert len([warning for warning in said if "times of the" in str(warning.message)]) == 1


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_training_views_of_another_range_are_said_where_the_views_lie_within(
    command: str, checkpoint: Path, tmp_path: Path, scene_cache: Path
) -> None:
    data = SyntheticDynamicScene(24, n_train=3, n_test=2, n_val=1, cache_dir=scene_cache)
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["field.time_range"] = torch.tensor([0.0, 1000.0])
    torch.save(content, tmp_path / "other.ckpt")
    module = tiny_module(field=WithinField())
    module.load_state_dict(content["state_dict"])
    module.field.aabb.fill_(float("nan"))  # of any box
    module.field._read_box()
    run = trainer(tmp_path, limit_val_batches=1)
    with pytest.warns(UserWarning, match="data's training views go from 0 to 1, but the field knows 0 to 1000"):
        getattr(run, command)(module, datamodule=data)


@pytest.mark.parametrize(
    ("n_views", "said"),
    [(3, "all 3 training views have time 0.5: nothing can"), (1, "the only training view has time 0.5: ")],
)
def test_a_fit_on_one_moment_is_warned_of_and_has_no_scores_over_time(
    n_views: int, said: str, tmp_path: Path, scene_cache: Path
) -> None:
    class OneMoment(TimedSource):
        def read(self, split: str) -> Scene:
            scene = super().read(split)
            return scene._replace(cameras=scene.cameras._replace(times=torch.full((scene.n_views,), 0.5)))

    source = OneMoment(24, n_train=n_views, n_test=2, cache_dir=str(scene_cache))
    data, module = NeRFDataModule(source, near=2.0, far=6.0), tiny_module(field=WithinField())
    run = trainer(tmp_path, max_steps=1, callbacks=[PSNRLogger(), RunResults()])
    with pytest.warns(UserWarning, match=said) as warned:
        run.fit(module, data)
    assert len([warning for warning in warned if "nothing can move" in str(warning.message)]) == 1
    run.test(module, datamodule=data, verbose=False)
    assert json.loads((run_folder(run) / "results.json").read_text())["psnr_per_time"] is None
    assert not [name for name in run.callback_metrics if "psnr_time" in name]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_fit_refuses_other_splits_without_times_before_its_first_step(
    split: str, tmp_path: Path, scene_cache: Path
) -> None:
    scene = SyntheticDynamicScene(24, n_train=3, n_test=2, n_val=1, cache_dir=scene_cache)
    scene.prepare_data()
    root = tmp_path / "scene"
    shutil.copytree(scene.source.root, root)  # type: ignore[attr-defined]
    path = root / f"transforms_{split}.json"
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        del frame["time"]
    path.write_text(json.dumps(content))
    with pytest.raises(BadArgument, match=f"data: WithinField wants times, but the {split} views have none"):
        trainer(tmp_path, max_steps=1).fit(tiny_module(field=WithinField()), BlenderData(root))


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_untrained_module_is_told_before_it_renders(command: str, tmp_path: Path, scene_cache: Path) -> None:
    module = tiny_module(field=WithinField())
    getattr(trainer(tmp_path, limit_val_batches=1), command)(module, datamodule=timed_scene(scene_cache))
    assert module.field.knows_times


def test_the_range_that_a_checkpoint_brings_is_not_asked_of_the_data(
    checkpoint: Path, tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mere test needs no training views."""
    monkeypatch.setattr(NeRFDataModule, "time_range", lambda self: pytest.fail("reads the training views"))
    module = tiny_module(field=WithinField())
    trainer(tmp_path).test(module, timed_scene(scene_cache), ckpt_path=checkpoint, verbose=False)
    assert module.field.time_range.tolist() == [FIRST, LAST]
