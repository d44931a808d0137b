"""Going on from checkpoints that a stranger may have written."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from lightning_nerf.callbacks.resume import CheckedResume, is_within
from lightning_nerf.checkpoint_content import resembling
from lightning_nerf.checkpoint_io import AtomicCheckpointIO
from lightning_nerf.checks import BadArgument
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.modules import NeRFModule
from tests.modules.thirdparty import SGD
from tests.scenes import tiny_module, tiny_scene, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:EMAWeights does nothing"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
]
HOSTILE = ["local://{victim}", "file://{victim}", "{dirpath}/../../victim", "{victim}", "{dirpath}/link/victim"]


class Scores(L.Callback):
    """Logs a number that falls, for ``monitor``."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        pl_module.log("score", -float(trainer.global_step))


def fitted(folder: Path, cache: Path, steps: int, module: NeRFModule | None = None, **options: Any) -> L.Trainer:
    """A fit that keeps the newest checkpoint of ``folder/run/checkpoints``."""
    every = ModelCheckpoint(folder / "run/checkpoints", every_n_train_steps=1)
    callbacks = [every, Scores(), *options.pop("callbacks", [])]
    ckpt_path = options.pop("ckpt_path", None)
    fit = trainer(folder / "run", max_steps=steps, enable_checkpointing=True, callbacks=callbacks, **options)
    fit.fit(module or tiny_module(), tiny_scene(cache), ckpt_path=ckpt_path)
    return fit


def changed(fit: L.Trainer, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A checkpoint of a fit with something changed in it."""
    fit.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder that is nobody's checkpoint, and a link to where it is."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/link").symlink_to(tmp_path)
    return folder


def point_to(path: str, state: dict[str, Any]) -> None:
    """Have a ModelCheckpoint's state name a path wherever it names one."""
    state.update(best_model_path=path, kth_best_model_path=path, last_model_path=path)
    state["best_k_models"] = {path: torch.tensor(1e9)}


@pytest.mark.parametrize("path", HOSTILE)
@pytest.mark.parametrize("monitor", [None, "score"])
@pytest.mark.parametrize("own_io", [True, False])
def test_a_checkpoint_removes_nothing_but_its_runs_own(
    tmp_path: Path, scene_cache: Path, victim: Path, path: str, monitor: str | None, own_io: bool
) -> None:
    """Also where the user's CheckpointIO, here Lightning's under another name, removes what it is told to."""
    from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

    class Obedient(TorchCheckpointIO):
        pass

    def fit(steps: int, **options: Any) -> L.Trainer:
        every = ModelCheckpoint(dirpath, every_n_train_steps=1, monitor=monitor, save_last=True)
        plugins = None if own_io else [Obedient()]
        run = trainer(
            tmp_path / "run", max_steps=steps, enable_checkpointing=True, callbacks=[every, Scores()], plugins=plugins
        )
        run.fit(tiny_module(), tiny_scene(scene_cache), **options)
        return run

    dirpath = tmp_path / "run/checkpoints"
    path = path.format(victim=victim, dirpath=dirpath)

    def point(content: dict[str, Any]) -> None:
        for key, state in content["callbacks"].items():
            if key.startswith("ModelCheckpoint"):
                point_to(path, state)

    hostile = changed(fit(2), tmp_path / "hostile.ckpt", point)
    fit(4, ckpt_path=hostile)
    assert names(victim) == ["thesis.tex"]


@pytest.mark.parametrize("path", HOSTILE)
def test_nor_does_it_with_another_module_and_our_checkpoint_io(tmp_path: Path, victim: Path, path: str) -> None:
    dirpath = tmp_path / "run/checkpoints"
    path = path.format(victim=victim, dirpath=dirpath)

    def fit(steps: int, **options: Any) -> L.Trainer:
        every = ModelCheckpoint(dirpath, every_n_train_steps=1)
        run = trainer(
            tmp_path / "run", max_steps=steps, enable_checkpointing=True, callbacks=[every], plugins=[AtomicCheckpointIO()]
        )
        run.fit(BoringModel(), **options)
        return run

    hostile = changed(fit(2), tmp_path / "hostile.ckpt", lambda c: [point_to(path, s) for s in c["callbacks"].values()])
    with warnings.catch_warnings(record=True):  # not all of these are even tried
        warnings.filterwarnings("always", ".* is not removed: it is no checkpoint of this run")
        fit(4, ckpt_path=hostile)
    assert names(victim) == ["thesis.tex"]


def test_a_run_that_goes_on_in_its_folder_keeps_one_checkpoint(tmp_path: Path, scene_cache: Path) -> None:
    fit = fitted(tmp_path, scene_cache, 3)
    assert names(tmp_path / "run/checkpoints") == ["epoch=0-step=3.ckpt"]
    fit.save_checkpoint(tmp_path / "it.ckpt")
    again = fitted(tmp_path, scene_cache, 5, ckpt_path=tmp_path / "it.ckpt")
    assert names(tmp_path / "run/checkpoints") == ["epoch=1-step=5.ckpt"]
    assert again.checkpoint_callback.best_model_path.endswith("step=5.ckpt")  # type: ignore[union-attr]


def test_the_best_of_a_run_are_known_when_it_goes_on(tmp_path: Path, scene_cache: Path) -> None:
    def fit(steps: int, **options: Any) -> ModelCheckpoint:
        every = ModelCheckpoint(tmp_path / "c", every_n_train_steps=1, monitor="score", mode="max", save_top_k=2)
        run = trainer(tmp_path, max_steps=steps, enable_checkpointing=True, callbacks=[every, Scores()])
        run.fit(tiny_module(), tiny_scene(scene_cache), **options)
        run.save_checkpoint(tmp_path / "it.ckpt")
        return every

    first = fit(4)
    kept = {path: float(score) for path, score in first.best_k_models.items()}
    again = fit(4, ckpt_path=tmp_path / "it.ckpt")
    assert {path: float(score) for path, score in again.best_k_models.items()} == kept
    assert again.kth_best_model_path == first.kth_best_model_path
    assert len(kept) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"kth_best_model_path": ""}, {"kth_best_model_path": 5}, {"best_k_models": {}}, {"best_k_models": 5},
        {"best_k_models": {"x": torch.tensor(1.0)}}, {"best_model_path": None}, {"best_model_score": "x"},
        {"kth_value": "x"},
        {"score": None}, {"score": torch.zeros(2)}, {"score": "x"}, {"score": 1j},
    ],
)  # fmt: skip
def test_what_a_run_says_of_its_best_is_forgotten_where_it_makes_no_sense(
    tmp_path: Path, scene_cache: Path, changes: dict[str, Any]
) -> None:
    folder = tmp_path / "run/checkpoints"

    def fit(steps: int, **options: Any) -> L.Trainer:
        every = ModelCheckpoint(folder, every_n_train_steps=1, monitor="score")
        fit = trainer(tmp_path, max_steps=steps, enable_checkpointing=True, callbacks=[every, Scores()])
        fit.fit(tiny_module(), tiny_scene(scene_cache), **options)
        return fit

    def spoil(content: dict[str, Any]) -> None:
        (state,) = (state for key, state in content["callbacks"].items() if key.startswith("ModelCheckpoint"))
        if "score" in changes:
            state["best_k_models"] = dict.fromkeys(state["best_k_models"], changes["score"])
        else:
            state.update(changes)

    again = fit(4, ckpt_path=changed(fit(2), tmp_path / "it.ckpt", spoil))
    assert again.checkpoint_callback.best_model_path.endswith("step=4.ckpt")  # type: ignore[union-attr]


def test_in_another_folder_a_run_begins_with_no_best_checkpoint(tmp_path: Path, scene_cache: Path) -> None:
    """And Lightning does not warn that the folder is another one."""
    fitted(tmp_path, scene_cache, 2).save_checkpoint(tmp_path / "it.ckpt")
    fitted(tmp_path / "other", scene_cache, 4, ckpt_path=tmp_path / "it.ckpt")
    assert names(tmp_path / "run/checkpoints") == ["epoch=0-step=2.ckpt"]
    assert names(tmp_path / "other/run/checkpoints") == ["epoch=1-step=4.ckpt"]


class Keeps(L.Callback):
    """A third party's callback with a state of its own."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict


def test_other_callbacks_get_no_paths_from_elsewhere_either(tmp_path: Path, scene_cache: Path, victim: Path) -> None:
    inside = str(tmp_path / "run/checkpoints/film.mp4")
    keeps = Keeps()
    keeps.state = {
        "film": inside, "metric": "val/psnr", "old": str(victim), "urls": ["s3://bucket/x", "~/x", "../x"], str(victim): 1,
        "count": 3,
    }  # fmt: skip
    fitted(tmp_path, scene_cache, 1, callbacks=[keeps]).save_checkpoint(tmp_path / "it.ckpt")
    again = Keeps()
    fitted(tmp_path, scene_cache, 2, callbacks=[again], ckpt_path=tmp_path / "it.ckpt")
    assert again.state == {"film": inside, "metric": "val/psnr", "old": "", "urls": ["", "", ""], "count": 3}


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/run/a/x.ckpt", True), ("/run/a/b/x.ckpt", True), ("/run/a/../a/x", True), ("/run/a", False),
        ("/run/ab/x", False), ("/run/a/../x", False), ("file:///run/a/x", False),
        ("s3://bucket/run/x", True), ("s3://bucket/run/../x", False),
        ("s3://bucket/running", False), ("simplecache::s3://bucket/run/x", False), ("\0", False), ("x" * 10_000, False),
    ],
)  # fmt: skip
def test_what_lies_within_a_folder(path: str, inside: bool) -> None:
    assert is_within(path, ["/run/a", "s3://bucket/run"]) == inside


# -- malformed states --------------------------------------------------------------------------------------------------


def put(*keys: Any) -> Callable[[dict[str, Any]], None]:
    """Put the last of ``keys`` at the place that the others lead to."""
    *way, name, value = keys

    def change(content: dict[str, Any]) -> None:
        place: Any = content
        for key in way:
            place = place[key]
        if value is GONE:
            del place[name]
        else:
            place[name] = value

    return change


GONE = object()
EPOCH = ("loops", "fit_loop", "epoch_progress")
OPTIMIZER = ("optimizer_states", 0)
MALFORMED = {
    "callbacks 5": (put("callbacks", 5), "callbacks: expected a dict, got int"),
    "a callback's state": (put("callbacks", "EarlyStopping", "wait_count", "x"), r"EarlyStopping.*wait_count: .*got 'x'"),
    "a tensor": (put("callbacks", "EarlyStopping", torch.zeros(3)), r"EarlyStopping.*: expected a dict, got Tensor"),
    "loops []": (put("loops", []), "loops: expected a dict"),
    "a loop 5": (put("loops", "fit_loop", 5), r"loops.fit_loop: expected a dict, got 5"),
    "progress": (put(*EPOCH, "total", "ready", "x"), r"loops.fit_loop.epoch_progress.total.ready: .*got 'x'"),
    "progress < 0": (put(*EPOCH, "total", "ready", -1), r"ready: expected a number >= 0, got -1"),
    "no states": (put("optimizer_states", GONE), "optimizer_states: .* the checkpoint has only weights"),
    "no schedules": (put("lr_schedulers", GONE), "lr_schedulers: .* the checkpoint has only weights"),
    "two states": (put("optimizer_states", [{}, {}]), "optimizer_states: expected 1, as this module has them, got 2"),
    "state 5": (put(*OPTIMIZER, 5), r"optimizer_states\[0\]: expected a dict with"),
    "a group": (put(*OPTIMIZER, "param_groups", []), r"param_groups: expected 1 groups, got 0"),
    "a rate": (put(*OPTIMIZER, "param_groups", 0, "lr", "x"), r"param_groups\[0\].lr: expected a number, got 'x'"),
    "a rate that is NaN": (put(*OPTIMIZER, "param_groups", 0, "lr", float("nan")), r"lr: expected a number .*NaN"),
    "a moment": (put(*OPTIMIZER, "state", 1, "exp_avg", torch.zeros(3)), r"exp_avg: .* shape \[16, 8\], got \[3\]"),
    "a moment that is none": (put(*OPTIMIZER, "state", 1, "exp_avg", 5), r"state\[1\].exp_avg: .*got int"),
    "no moment": (put(*OPTIMIZER, "state", 1, {"step": 3.0}), r"optimizer_states\[0\]: cannot be restored \(KeyError"),
    "a step": (put(*OPTIMIZER, "state", 1, "step", float("nan")), r"state\[1\].step: expected a number >= 0"),
    "a schedule": (put("lr_schedulers", 0, "last_epoch", None), r"lr_schedulers\[0\].last_epoch: expected a number"),
    "raw weights": (put("raw_weights", "field.color_net.0.weight", torch.zeros(1)), r"raw_weights\['field.*came \[1\]"),
    "version": (put("pytorch-lightning_version", 5), "pytorch-lightning_version: expected a version, got 5"),
    "box": (put("state_dict", "field.aabb", torch.tensor([[0.0, 0, 0], [1, float("nan"), 1]])), r"field.aabb: .*corner"),
    "no box": (put("state_dict", "field.aabb", torch.full((2, 3), float("nan"))), r"field.aabb: .*got none"),
    "no grid's box": (put("state_dict", "estimator.aabb", torch.full((2, 3), float("nan"))), r"estimator.aabb: .*got none"),
    "a grid of none": (put("state_dict", "estimator.bound", torch.zeros(())), r"estimator.bound: expected True.*False"),
    "weights": (put("state_dict", None), "state_dict: expected a dict"),
    "no weights": (put("state_dict", GONE), "state_dict: expected the weights, got none"),
    "a key of nothing": (put("state_dict", "reset", None), r"state_dict\['reset'\]: came NoneType, expected nothing"),
    "a key": (put("state_dict", 5, torch.zeros(1)), "state_dict: expected names as keys, got 5"),
    "parts": (put("nerf_parts", "field", [1]), "."),
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, scene_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    stop = EarlyStopping("score", patience=100)
    fitted(folder, scene_cache, 2, callbacks=[stop]).save_checkpoint(folder / "it.ckpt")
    return folder


@pytest.mark.parametrize(("change", "says"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_state_is_named(
    run: Path, tmp_path: Path, scene_cache: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    content = torch.load(run / "it.ckpt", weights_only=True)
    for key in list(content["callbacks"]):
        if key.startswith("EarlyStopping"):
            content["callbacks"]["EarlyStopping"] = content["callbacks"][key]
    change(content)
    if isinstance(content.get("callbacks"), dict):
        stop = EarlyStopping("score", patience=100)
        content["callbacks"][stop.state_key] = content["callbacks"].pop("EarlyStopping")
    torch.save(content, tmp_path / "it.ckpt")
    stop = EarlyStopping("score", patience=100)
    with pytest.raises(BadArgument, match=says):
        fitted(tmp_path, scene_cache, 4, callbacks=[stop], ckpt_path=tmp_path / "it.ckpt")


def test_keys_that_no_loop_and_no_schedule_has_are_left_out(run: Path, tmp_path: Path, scene_cache: Path) -> None:
    """Lightning and torch would set attributes by these names: ``scheduler.step = 5``."""
    content = torch.load(run / "it.ckpt", weights_only=True)
    content["lr_schedulers"][0].update(step=5, optimizer="x", get_lr=[])
    content["loops"]["fit_loop"]["epoch_progress"].update(reset=5, increment_ready="x")
    torch.save(content, tmp_path / "it.ckpt")
    stop = EarlyStopping("score", patience=100)
    fit = fitted(tmp_path, scene_cache, 4, callbacks=[stop], ckpt_path=tmp_path / "it.ckpt")
    assert fit.global_step == 4


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(MultiStepLR, milestones=[1, 3]),
        functools.partial(LambdaLR, lr_lambda=lambda step: 0.5**step),
        lambda o: SequentialLR(o, [LinearLR(o, total_iters=2), ConstantLR(o)], milestones=[2]),
        functools.partial(OneCycleLR, max_lr=0.1, total_steps=9),
        functools.partial(CosineAnnealingWarmRestarts, T_0=2),
    ],
)
@pytest.mark.parametrize("rate", [1, 0.5])
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_torchs_schedulers_go_on_where_they_were(tmp_path: Path, scene_cache: Path, make: Any, rate: float) -> None:
    rates: list[list[float]] = []
    for steps, ckpt_path in ((6, None), (3, None), (6, tmp_path / "3.ckpt")):
        optimizer: Any = functools.partial(SGD, lr=rate)
        fit = trainer(tmp_path, max_steps=steps)
        fit.fit(tiny_module(optimizer=optimizer, lr_scheduler=make), tiny_scene(scene_cache), ckpt_path=ckpt_path)
        fit.save_checkpoint(tmp_path / f"{steps}.ckpt")
        rates.append(fit.lr_scheduler_configs[0].scheduler.get_last_lr())
    assert rates[0] == rates[2]


def test_the_best_of_no_values_is_infinite() -> None:
    best = {"best": float("inf"), "sentinel": -1}
    assert resembling({"best": 0.5, "sentinel": 3}, best, "x") == {"best": 0.5, "sentinel": 3}
    assert resembling(dict(best), best, "x") == best
    for odd in (float("nan"), "x", None):
        with pytest.raises(BadArgument, match=r"x\.best: expected a number"):
            resembling({"best": odd}, best, "x")


def test_another_optimizers_state_is_taken_or_refused_as_before(tmp_path: Path, scene_cache: Path) -> None:
    def module() -> NeRFModule:
        return tiny_module(optimizer=SGD, estimator=OccupancyGrid(resolution=16, step_size=0.05))

    fitted(tmp_path, scene_cache, 2, module()).save_checkpoint(tmp_path / "it.ckpt")
    assert fitted(tmp_path, scene_cache, 4, module(), ckpt_path=tmp_path / "it.ckpt").global_step == 4


def test_a_folder_that_takes_no_checkpoints_is_an_error_before_training(tmp_path: Path, scene_cache: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    every = ModelCheckpoint(tmp_path / "run/checkpoints", every_n_train_steps=1)
    fit = trainer(tmp_path, max_steps=2, enable_checkpointing=True, callbacks=[every])
    with pytest.raises(OSError, match="dirpath of ModelCheckpoint: nothing can be written there"):
        fit.fit(tiny_module(), tiny_scene(scene_cache))
    assert fit.global_step == 0


def test_every_module_brings_it_once(tmp_path: Path, scene_cache: Path) -> None:
    for given in ([], [CheckedResume()]):
        fit = trainer(tmp_path, max_steps=1, callbacks=list(given))
        fit.fit(tiny_module(), tiny_scene(scene_cache))
        assert sum(isinstance(c, CheckedResume) for c in fit.callbacks) == 1  # type: ignore[attr-defined]
    assert os.listdir(tmp_path) == []
