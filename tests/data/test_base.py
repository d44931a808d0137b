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
from lightning_nerf.data import SyntheticScene
from lightning_nerf.data.base import NeRFDataModule, StepNumbers, ViewIndices
from lightning_nerf.data.views import Views
from lightning_nerf.ops.random import make_key
from lightning_nerf.types import RayBatch
from tests.data.test_views import numbered_views

# Lightning 2.6.6 on torch 2.13; everything else stays an error.
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")

BOX = [[-1, -1, -1], [1, 1, 1]]
COUNTS = {"train": 3, "val": 2, "test": 4}


class NumberedData(NeRFDataModule):
    """Pictures made up in memory; remembers what was loaded."""

    def __init__(self, counts: dict[str, int] = COUNTS, **kwargs: Any) -> None:
        super().__init__(**{"aabb": BOX, "near": 0.5, "far": 4.0, **kwargs})
        self.counts = counts
        self.log: list[str] = []

    def load(self, split: str) -> tuple[Views, list[str]]:
        self.log.append(split)
        return numbered_views(self.counts[split]), [f"{split}_{i}" for i in range(self.counts[split])]


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


def test_views_are_loaded_and_lent_once() -> None:
    data = NumberedData()
    assert data.lend("cpu") is data.lend(torch.device("cpu"))
    assert data.views("train") is data.views("train")
    assert data.names("val") == ["val_0", "val_1"]
    assert data.lend("meta", "val").images.shape == (2, 4, 5, 4)
    assert data.log == ["train", "val"]
    assert data.lend("meta").images.device.type == "meta"
    assert data.lend("cpu").images.device.type == "cpu"


@pytest.mark.gpu
def test_lending_to_a_gpu_copies_once() -> None:
    data = NumberedData()
    lent = data.lend("cuda")
    assert data.lend("cuda:0") is lent
    assert torch.equal(lent.images.cpu(), data.views("train").images)
    assert data.draw(make_key(0, device="cuda"), 8).rgb.device == lent.images.device
    assert data.lend("cuda") is lent


def test_draw_uses_the_training_views_and_bounds() -> None:
    batch = NumberedData().draw(make_key(0), 100, torch.tensor(60))
    assert isinstance(batch, RayBatch)
    assert batch.rays.near[:60].eq(0.5).all()
    assert batch.rays.far[:60].eq(4.0).all()
    assert batch.rays.far[60:].eq(0.0).all()
    assert set(batch.image_index.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("background", "given", "expected"),
    [("white", None, "white"), ("black", None, "black"), ("random", None, "white"), ("random", "black", "black")],
)
def test_backgrounds(background: str, given: str | None, expected: str) -> None:
    data = NumberedData(background=background, eval_background=given)
    assert data.eval_background == expected
    colours = data.draw_background(make_key(5), 1000)
    assert colours.shape == (1000, 3)
    if background == "random":
        assert torch.equal(colours, data.draw_background(make_key(5), 1000))
        assert not torch.equal(colours, data.draw_background(make_key(6), 1000))
        assert len(colours.unique(dim=0)) > 990
    else:
        assert bool((colours == (1.0 if background == "white" else 0.0)).all())
    first, later = (data.draw_background(make_key(5, step=step), 1000, random_steps=2) for step in (1, 2))
    assert len(first.unique(dim=0)) > 990
    assert torch.equal(later, data.draw_background(make_key(5, step=2), 1000))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
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
        NumberedData().views("training")
