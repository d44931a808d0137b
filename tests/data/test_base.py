from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_nerf.arguments import described
from lightning_nerf.data import BlenderData, NeRFDataModule, Scene, Source, SyntheticScene
from lightning_nerf.data.loaders import StepNumbers, ViewIndices
from lightning_nerf.ops.random import make_key
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import RayBatch
from tests.data.numbered import BOX, MIXED, NumberedData, NumberedSource, numbered_scene

# Lightning 2.6.6 on torch 2.13; everything else stays an error.
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")


class Recorder(L.LightningModule):
    """Writes down its batches; trains one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.steps: list[int] = []
        self.seen: dict[str, list[tuple[int, str]]] = {"val": [], "test": [], "predict": []}

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        self.steps.append(batch)
        return (self.weight - 1) ** 2

    def validation_step(self, batch: tuple[int, str], batch_idx: int) -> None:
        self.seen["val"].append(batch)

    def test_step(self, batch: tuple[int, str], batch_idx: int) -> None:
        self.seen["test"].append(batch)

    def predict_step(self, batch: tuple[int, str], batch_idx: int) -> Tensor:
        self.seen["predict"].append(batch)
        return self.weight

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(**kwargs: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(**{"accelerator": "cpu", **quiet, **kwargs})


def test_the_trainer_takes_the_loaders_without_a_warning() -> None:
    """Any warning is an error here; Lightning's advice to add workers would be one."""
    data, module = NumberedData(), Recorder()
    running = trainer(max_steps=5, val_check_interval=5, check_val_every_n_epoch=None, num_sanity_val_steps=0)
    running.fit(module, data)
    assert data.log == ["train", "val"]
    assert module.steps == [0, 1, 2, 3, 4]
    assert module.seen["val"] == [(0, "val_0"), (1, "val_1")]
    running.test(module, data, verbose=False)
    running.predict(module, data, return_predictions=False)
    assert data.log == ["train", "val", "test"]
    assert module.seen["test"] == module.seen["predict"] == [(i, f"test_{i}") for i in range(4)]


def test_a_fit_without_validation_views() -> None:
    module = Recorder()
    with pytest.warns(UserWarning, match="Total length of `ViewIndices` across ranks is zero"):
        trainer(max_steps=2).fit(module, NumberedData({"train": 3, "val": 0, "test": 0}))
    assert module.steps == [0, 1]
    assert module.seen["val"] == []


@pytest.mark.parametrize("accumulate", [1, 2])
def test_step_numbers_continue_over_epochs_and_after_resuming(tmp_path: Any, accumulate: int) -> None:
    batches = {"limit_train_batches": 4, "accumulate_grad_batches": accumulate}
    module = Recorder()
    first = trainer(max_epochs=2, **batches)
    first.fit(module, NumberedData())
    assert module.steps == list(range(8))
    first.save_checkpoint(tmp_path / "last.ckpt")
    module = Recorder()
    trainer(max_epochs=3, **batches).fit(module, NumberedData(), ckpt_path=tmp_path / "last.ckpt")
    assert module.steps == list(range(8, 12))


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_step_numbers_continue_after_a_checkpoint_amid_the_endless_epoch(tmp_path: Any) -> None:
    def fit(max_steps: int, **resume: Any) -> list[int]:
        module = Recorder()
        checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=5, filename="{step}", save_top_k=-1)
        validation = {"val_check_interval": 4, "check_val_every_n_epoch": None}
        running = trainer(max_steps=max_steps, enable_checkpointing=True, callbacks=[checkpoint], **validation)
        running.fit(module, NumberedData(), **resume)
        return module.steps

    assert fit(7) == list(range(7))
    assert fit(9, ckpt_path=tmp_path / "step=5.ckpt") == [5, 6, 7, 8]


def test_views_are_shared_out_among_ranks() -> None:
    names = [f"r_{i}" for i in range(5)]
    shares = [list(ViewIndices(names, rank, 2)) for rank in range(2)]
    assert shares == [[(0, "r_0"), (2, "r_2"), (4, "r_4")], [(1, "r_1"), (3, "r_3"), (0, "r_0")]]
    assert list(ViewIndices([], 0, 2)) == []
    assert list(ViewIndices(names)) == list(enumerate(names))
    data = NumberedData({"train": 1, "val": 3, "test": 4})
    data.trainer = type("Two", (), {"global_rank": 1, "world_size": 2})()  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="3 val views over 2 processes: some are evaluated twice"):
        data.val_dataloader()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(data.test_dataloader()) == [(1, "test_1"), (3, "test_3")]


def test_step_numbers_start_anew_from_where_the_run_is() -> None:
    done = [0, 7]
    steps = StepNumbers(lambda: done.pop(0))
    for first in (0, 7):
        numbers = iter(steps)
        assert [next(numbers), next(numbers)] == [first, first + 1]


def test_views_are_read_and_copied_once() -> None:
    data = NumberedData()
    assert data.scene_on("cpu") is data.scene_on(torch.device("cpu"))
    assert data.scene("train") is data.scene("train")
    assert data.scene("val").names == ["val_0", "val_1"]
    assert data.scene_on("meta", "val").images.colors.shape == (2 * 4 * 5, 4)
    assert data.log == ["train", "val"]
    assert data.scene_on("meta").images.colors.device.type == "meta"
    assert data.scene_on("cpu").images.colors.device.type == "cpu"


@pytest.mark.gpu
def test_views_are_copied_to_a_gpu_once() -> None:
    data = NumberedData()
    there = data.scene_on("cuda")
    assert data.scene_on("cuda:0") is there
    assert torch.equal(there.images.colors.cpu(), data.scene("train").images.colors)
    assert data.draw(make_key(0, device="cuda"), 8).rgb.device == there.images.colors.device
    assert data.scene_on("cuda") is there


class Prepared(NumberedSource):
    """Has to be prepared before it is read."""

    def prepare(self) -> None:
        self.log.append("prepared")


def test_a_source_is_prepared_before_it_is_read() -> None:
    data = NeRFDataModule(source := Prepared(), aabb=BOX)
    data.prepare_data()
    assert source.log == ["prepared"]
    data.setup("validate")
    assert source.log == ["prepared", "prepared", "val"]
    data.scene("val")
    assert len(source.log) == 3


def test_a_stage_reads_its_splits() -> None:
    for stage, splits in [("fit", ["train", "val"]), ("test", ["test"]), ("predict", ["test"])]:
        data = NumberedData()
        data.setup(stage)
        assert data.log == splits
    data = NumberedData()
    data.setup()
    assert data.log == ["train", "val", "test"]


def test_draw_uses_the_training_views_and_bounds() -> None:
    batch = NumberedData().draw(make_key(0), 100, torch.tensor(60))
    assert isinstance(batch, RayBatch)
    assert batch.rays.near[:60].eq(0.5).all()
    assert batch.rays.far[:60].eq(4.0).all()
    assert batch.rays.far[60:].eq(0.0).all()
    assert batch.rays.cameras is not None
    assert set(batch.rays.cameras.tolist()) == {0, 1, 2}


class Given(Source):
    """Reads what it was given, whatever the split."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def read(self, split: str) -> Scene:
        return self.scene


def test_bounds_of_cameras_go_before_the_data_modules() -> None:
    for bounded, expected in [(True, [0.5, 7.0]), (False, [0.25, 3.0])]:
        data = NeRFDataModule(Given(numbered_scene(MIXED, bounded=bounded)), aabb=BOX, near=0.25, far=3.0)
        for cameras in (data.scene("train").cameras, data.scene_on("cpu").cameras):
            assert cameras.bounds is not None
            assert cameras.bounds.tolist() == [expected] * 3
        rays = data.draw(make_key(0), 50).rays
        assert torch.stack([rays.near, rays.far], -1).unique(dim=0).tolist() == [expected]


def test_the_box_is_the_arguments_or_the_sources() -> None:
    own = torch.tensor([[-2.0, -2.0, -2.0], [2.0, 2.0, 2.0]])
    scene = numbered_scene()
    boxed = Given(scene._replace(box=SceneBox(own, "linf")))
    for source, options, expected in [
        (boxed, {}, SceneBox(own, "linf")),
        (boxed, {"contraction": "l2"}, SceneBox(own, "l2")),
        (boxed, {"aabb": BOX}, SceneBox(torch.tensor(BOX).float())),
        (Given(scene), {"aabb": BOX, "contraction": "linf"}, SceneBox(torch.tensor(BOX).float(), "linf")),
    ]:
        box = NeRFDataModule(source, **options).scene_box
        assert torch.equal(box.aabb, expected.aabb)
        assert box.contraction == expected.contraction
    with pytest.raises(ValueError, match="aabb: Given knows no box; give two corners that hold the scene"):
        _ = NeRFDataModule(Given(scene)).scene_box


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.tensor(BOX).float(), r"Knowing.box\(\): expected SceneBox, got Tensor"),
        ("box", r"Knowing.box\(\): expected SceneBox, got str"),
        (SceneBox(torch.zeros(2, 3)), r"Knowing.box\(\).aabb: expected a minimum corner and a maximum corner above it"),
        (
            SceneBox(torch.tensor(BOX).float(), "l5"),
            r"Knowing.box\(\).contraction: expected one of none, l2, linf, ndc, got 'l5'",
        ),
    ],
)
def test_a_sources_box_is_checked(given: Any, message: str) -> None:
    class Knowing(Given):
        def box(self) -> SceneBox | None:
            return given

    with pytest.raises(ValueError, match=message):
        _ = NeRFDataModule(Knowing(numbered_scene())).scene_box


def test_a_stage_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="stage: expected one of fit, validate, test, predict, got 'train'"):
        NeRFDataModule(Given(numbered_scene()), aabb=BOX).setup("train")


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6, 1e33])
def test_bounds_that_are_not_given_follow_the_unit(unit: float) -> None:
    scene = numbered_scene()
    scene = scene._replace(cameras=scene.cameras._replace(bounds=None))
    box = [[-1.5 * unit] * 3, [1.5 * unit] * 3]
    bounds = NeRFDataModule(Given(scene), aabb=box).scene("train").cameras.bounds
    assert bounds is not None
    torch.testing.assert_close(bounds, torch.tensor([[0.05 * unit, 1000.0 * unit]]).expand(3, 2), rtol=1e-6, atol=0)


def test_the_range_of_times_is_that_of_the_training_views() -> None:
    scene = numbered_scene()
    assert NeRFDataModule(Given(scene), aabb=BOX).time_range() == (0.0, 1.0)
    static = scene._replace(cameras=scene.cameras._replace(times=None))
    assert NeRFDataModule(Given(static), aabb=BOX).time_range() is None
    assert NumberedData({"train": 0, "val": 0, "test": 0}).time_range() is None


def test_what_a_source_reads_is_checked() -> None:
    scene = numbered_scene()
    with pytest.raises(ValueError, match=r"Given.read\('train'\).names: expected 3 names, got 1"):
        NeRFDataModule(Given(scene._replace(names=["one"])), aabb=BOX).setup("fit")
    with pytest.raises(TypeError, match="source: expected Source, got Scene"):
        NeRFDataModule(scene, aabb=BOX)  # type: ignore[arg-type]


def test_a_scene_is_called_what_its_source_is_called(tmp_path: Path) -> None:
    assert NumberedData().scene_name == "NumberedSource"
    assert BlenderData(tmp_path / "lego").scene_name == "lego"
    assert SyntheticScene(cache_dir=tmp_path).scene_name == "synthetic"


@pytest.mark.parametrize(
    ("background", "given", "expected"),
    [("white", None, "white"), ("black", None, "black"), ("random", None, "white"), ("random", "black", "black")],
)
def test_backgrounds(background: str, given: str | None, expected: str) -> None:
    data = NumberedData(background=background, eval_background=given)
    assert data.eval_background == expected
    colors = data.draw_background(make_key(5), 1000)
    assert colors.shape == (1000, 3)
    if background == "random":
        assert torch.equal(colors, data.draw_background(make_key(5), 1000))
        assert not torch.equal(colors, data.draw_background(make_key(6), 1000))
        assert len(colors.unique(dim=0)) > 990
    else:
        assert bool((colors == (1.0 if background == "white" else 0.0)).all())
    first, later = (data.draw_background(make_key(5, step=step), 1000, random_steps=2) for step in (1, 2))
    assert len(first.unique(dim=0)) > 990
    assert torch.equal(later, data.draw_background(make_key(5, step=2), 1000))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"contraction": "cube"}, "contraction: expected one of none, l2, linf, ndc, got 'cube'"),
        ({"background": "grey"}, 'background: expected "white", "black" or "random", got \'grey\''),
        ({"eval_background": "random"}, "eval_background: expected"),
        ({"near": 2.0, "far": 2.0}, "near, far: expected 0 <= near < far, got 2.0, 2.0"),
        ({"far": float("inf")}, r"far: expected a number in \[0, inf\), got inf"),
        ({"aabb": [[0, 0, 0], [1, 1, 0]]}, "aabb: expected a minimum corner and a maximum corner above it"),
        ({"aabb": [[0, 0], [1, 1]]}, "aabb: expected"),
        ({"aabb": [[0, 0, 0], [1, 1, float("nan")]]}, "aabb: expected"),
        ({"aabb": "box"}, "aabb: expected two corners"),
        ({"aabb": 3}, "aabb: expected two corners"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NumberedData(**kwargs)


def test_a_checkpoint_that_names_no_data_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "it.ckpt")
    with pytest.raises(ValueError, match=r"it\.ckpt names no data module"):
        NumberedData.load_from_checkpoint(tmp_path / "it.ckpt")
    torch.save({"datamodule_hyper_parameters": described(NumberedData())}, tmp_path / "it.ckpt")
    assert type(NeRFDataModule.load_from_checkpoint(tmp_path / "it.ckpt")) is NumberedData
    assert NeRFDataModule.load_from_checkpoint(tmp_path / "it.ckpt", far=5.0).far == 5.0
    with pytest.raises(ValueError, match=r"class_path: expected a subclass of .*SyntheticScene.*NumberedData"):
        SyntheticScene.load_from_checkpoint(tmp_path / "it.ckpt")


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="split: expected one of train, val, test, got 'training'"):
        NumberedData().scene("training")
