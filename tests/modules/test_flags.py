"""Lightning's flags do what they say; docs/trainer-flags.md is the table."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from lightning_nerf.callbacks import ImageLogger, OccupancyGridUpdate, PSNRLogger, RunResults, Telemetry, Turntable
from lightning_nerf.modules import InstantNGP, WarmupDecay
from lightning_nerf.optim import FusedAdam
from lightning_nerf.types import FieldOutput
from tests.executors.fits import PlainField
from tests.scenes import tiny_module, tiny_scene, trainer

N_VAL, N_TEST = 5, 2  # views of the tiny scene


class Seen(L.Callback):
    """What a fit did."""

    def __init__(self) -> None:
        self.keys: list[list[int]] = []
        self.n_rays: list[int] = []
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.psnrs: list[float] = []
        self.val = self.sanity = self.test = 0
        self.before_clipping: list[list[Tensor]] = []
        self.in_update: list[list[Tensor]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        def keep(*_: Any) -> None:
            self.in_update.append([p.grad.clone() for p in pl_module.parameters()])

        trainer.optimizers[0].register_step_post_hook(keep)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.before_clipping.append([p.grad.clone() for p in pl_module.parameters()])
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.keys.append(pl_module.key.tolist())
        self.n_rays.append(int(outputs["n_rays"]))
        self.losses.append(float(outputs["loss"]))

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.sanity += trainer.sanity_checking
        self.val += not trainer.sanity_checking

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking and "val/psnr" in trainer.callback_metrics:
            self.psnrs.append(float(trainer.callback_metrics["val/psnr"]))

    def on_test_batch_end(self, *_: Any) -> None:
        self.test += 1


def fit(folder: Path, cache: Path, module: InstantNGP | None = None, **options: Any) -> tuple[Seen, L.Trainer, InstantNGP]:
    torch.manual_seed(0)
    module, seen = tiny_module() if module is None else module, Seen()
    run = trainer(folder, **{**options, "callbacks": [*options.get("callbacks", []), seen]})
    run.fit(module, tiny_scene(cache))
    return seen, run, module


def total_norm(grads: list[Tensor]) -> Tensor:
    return torch.stack([g.double().square().sum() for g in grads]).sum().sqrt()


# -- how many ---------------------------------------------------------------------------------------------------------

ALL_VIEWS = {"limit_val_batches": 1.0}
AN_INSTANT = {"microseconds": 1}
COUNTS: list[tuple[dict[str, Any], dict[str, int]]] = [
    ({"max_steps": 4}, {"steps": 4, "batches": 4, "val": 0}),
    ({"max_steps": 4, "accumulate_grad_batches": 3}, {"steps": 4, "batches": 12}),
    ({"limit_train_batches": 3, "max_epochs": 2}, {"steps": 6, "batches": 6}),
    ({"limit_train_batches": 5, "max_epochs": 1, "accumulate_grad_batches": 2}, {"steps": 3, "batches": 5}),
    ({"limit_train_batches": 3, "max_epochs": 2, "max_steps": 4}, {"steps": 4, "batches": 4}),
    ({"limit_train_batches": 2, "max_epochs": 4, "check_val_every_n_epoch": 2, **ALL_VIEWS}, {"val": 2 * N_VAL}),
    ({"max_steps": 6, "val_check_interval": 2, "limit_val_batches": 1}, {"steps": 6, "val": 3}),
    ({"max_steps": 6, "val_check_interval": 3, "limit_val_batches": 0.4}, {"val": 4}),
    (
        {"max_steps": 8, "limit_train_batches": 3, "val_check_interval": 2, "check_val_every_n_epoch": None, **ALL_VIEWS},
        {"steps": 8, "val": 4 * N_VAL},
    ),
    ({"max_steps": 2, "num_sanity_val_steps": 2, **ALL_VIEWS}, {"sanity": 2, "val": 0}),
    ({"max_steps": 2, "num_sanity_val_steps": -1, **ALL_VIEWS}, {"sanity": N_VAL}),
    ({"max_steps": 2, "limit_test_batches": 1}, {"test": 1}),
    ({"max_steps": 2}, {"test": N_TEST}),
    ({"max_steps": 4, "limit_train_batches": 2, "reload_dataloaders_every_n_epochs": 1, **ALL_VIEWS}, {"val": 2 * N_VAL}),
    ({"max_steps": 99, "max_time": AN_INSTANT}, {"steps": 1}),
    ({"max_steps": 99, "max_time": AN_INSTANT, "min_steps": 5}, {"steps": 5}),
    ({"max_steps": 99, "callbacks": [Timer(AN_INSTANT)]}, {"steps": 1}),
    ({"overfit_batches": 2, "max_steps": 6, **ALL_VIEWS}, {"steps": 6, "val": 6}),
    ({"fast_dev_run": True, **ALL_VIEWS}, {"steps": 1, "val": 1, "test": 1}),
    ({"fast_dev_run": 3, **ALL_VIEWS}, {"steps": 3, "val": 3, "test": N_TEST}),
]


@pytest.mark.parametrize(("options", "expected"), COUNTS, ids=lambda value: ",".join(value))
def test_batches_steps_and_views_are_as_many_as_told(
    tmp_path: Path, scene_cache: Path, options: dict[str, Any], expected: dict[str, int]
) -> None:
    seen, run, module = fit(tmp_path, scene_cache, **options)
    run.test(module, datamodule=tiny_scene(scene_cache), verbose=False)
    counted = {"steps": run.global_step, "batches": len(seen.keys), **vars(seen)}
    assert {name: counted[name] for name in expected} == expected
    assert len(seen.rates) == run.global_step


@pytest.mark.parametrize("n", [1, 3])
def test_fast_dev_run_leaves_no_files(tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    tiny_scene(scene_cache).setup()
    monkeypatch.chdir(tmp_path)
    callbacks = [PSNRLogger(), ImageLogger(), Turntable(n_frames=2), RunResults(), Telemetry(1), ModelCheckpoint()]
    options = {"fast_dev_run": n, "callbacks": callbacks, "logger": True, "enable_checkpointing": True, **ALL_VIEWS}
    _, run, module = fit(tmp_path, scene_cache, **options)
    run.test(module, datamodule=tiny_scene(scene_cache), verbose=False)
    assert run.global_step == n
    assert not list(tmp_path.iterdir())


def test_timer_stops_in_time(tmp_path: Path, scene_cache: Path) -> None:
    begin = time.monotonic()
    timer = Timer({"milliseconds": 300})
    _, run, _ = fit(tmp_path, scene_cache, max_steps=10**6, callbacks=[timer])
    assert 0.3 <= timer.time_elapsed() <= time.monotonic() - begin
    assert 1 <= run.global_step < 10**6


def test_a_fit_without_end_needs_a_schedule_of_its_own(tmp_path: Path, scene_cache: Path) -> None:
    module = tiny_module(lr_scheduler=lambda optimizer: WarmupDecay(optimizer, 10))
    _, run, _ = fit(tmp_path, scene_cache, module, max_steps=-1, max_epochs=-1, max_time=AN_INSTANT)
    assert run.global_step == 1


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [FusedAdam, torch.optim.Adam])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_bounds_the_gradients_of_the_update(
    tmp_path: Path, scene_cache: Path, optimizer: Any, algorithm: str, precision: str
) -> None:
    limit = 1e-4 if algorithm == "norm" else 1e-5
    module = tiny_module(optimizer=optimizer)
    options = {"max_steps": 4, "gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}
    seen, _, _ = fit(tmp_path, scene_cache, module, precision=precision, **options)
    assert len(seen.in_update) == 4
    for raw, clipped in zip(seen.before_clipping, seen.in_update, strict=True):
        if algorithm == "norm":
            assert total_norm(raw) > 2 * limit
            assert total_norm(clipped) <= limit
            for a, b in zip(clipped, raw, strict=True):
                torch.testing.assert_close(a, b * float(limit / (total_norm(raw) + 1e-6)), rtol=1e-5, atol=0)
        else:
            assert any(g.abs().max() > limit for g in raw)
            assert all(torch.equal(a, b.clamp(-limit, limit)) for a, b in zip(clipped, raw, strict=True))


def test_clipping_what_the_optimizer_has_yet_to_unscale_is_refused(tmp_path: Path, scene_cache: Path) -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match=r"^gradient_clip_val: with precision='16-mixed' FusedAdam .*got 0\.1"):
        fit(tmp_path, scene_cache, plugins=[plugin], max_steps=2, gradient_clip_val=0.1)


class Batches(L.Callback):
    """Gradient of each batch by itself, at the weights of the update."""

    def __init__(self) -> None:
        self.alone: list[list[Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        if self.alone:
            return
        for step in range(trainer.accumulate_grad_batches):
            pl_module.name_step(step)
            with torch.enable_grad():
                loss, _ = pl_module.render_loss()
            self.alone.append(list(torch.autograd.grad(loss, list(pl_module.parameters()))))


def test_accumulation_averages_the_gradients_of_different_batches(tmp_path: Path, scene_cache: Path) -> None:
    alone, telemetry = Batches(), Telemetry(every_n_steps=1)
    module = tiny_module(huber_delta=float("inf"))
    options = {"max_steps": 3, "accumulate_grad_batches": 2, "callbacks": [alone, telemetry]}
    seen, _, _ = fit(tmp_path, scene_cache, module, **options)
    assert [key[2] for key in seen.keys] == list(range(6))
    for together, first, second in zip(seen.in_update[0], *alone.alone, strict=True):
        assert not torch.equal(first, second)
        assert torch.equal(together, first / 2 + second / 2)  # halves are exact
    assert telemetry.latest["train/loss"] == pytest.approx(telemetry.latest["train/mse"] / 2, rel=1e-6)


# -- the same batches again -------------------------------------------------------------------------------------------


class GridKeys(OccupancyGridUpdate):
    """Keys of the grid's updates."""

    def __init__(self) -> None:
        super().__init__(every_n_steps=2)
        self.steps: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        update = type(pl_module.estimator).update

        def noted(*args: Any, key: Tensor, **kwargs: Any) -> None:
            self.steps.append(int(key[2]))
            update(pl_module.estimator, *args, key=key, **kwargs)

        pl_module.estimator.update = noted
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        del pl_module.estimator.update


@pytest.mark.parametrize("n", [1, 2])
def test_overfit_batches_repeats_its_batches_until_they_are_known(tmp_path: Path, scene_cache: Path, n: int) -> None:
    grid = GridKeys()
    seen, _, _ = fit(tmp_path, scene_cache, overfit_batches=n, max_steps=30 * n, callbacks=[grid])
    assert [key[2] for key in seen.keys] == [i % n for i in range(30 * n)]
    assert len(set(seen.n_rays)) == 1
    for batch in range(n):
        losses = seen.losses[batch::n]
        assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
    # Only rays are drawn again: the grid goes on to look at other points.
    assert grid.steps == list(range(0, 30 * n, 2))


# -- stopping, keeping, watching --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("min_delta", "steps"), [(100.0, 6), (-100.0, 12)])
def test_early_stopping_on_psnr(tmp_path: Path, scene_cache: Path, min_delta: float, steps: int) -> None:
    stopping = EarlyStopping("val/psnr", mode="max", patience=2, min_delta=min_delta)
    options = {
        "max_steps": 12,
        "val_check_interval": 2,
        "limit_val_batches": 1, "callbacks": [PSNRLogger(ssim=False), stopping],
    }  # fmt: skip
    _, run, _ = fit(tmp_path, scene_cache, **options)
    assert run.global_step == steps


@pytest.mark.parametrize("mode", ["max", "min"])
def test_model_checkpoint_keeps_the_best_psnr(tmp_path: Path, scene_cache: Path, mode: str) -> None:
    keep = ModelCheckpoint(tmp_path / "kept", monitor="val/psnr", mode=mode, save_top_k=2, filename="{step}")
    options: dict[str, Any] = {"val_check_interval": 2, "enable_checkpointing": True, **ALL_VIEWS}
    module = tiny_module(optimizer=FusedAdam)  # an average that moves in each fourth step would give ties
    seen, run, _ = fit(tmp_path, scene_cache, module, max_steps=12, callbacks=[PSNRLogger(ssim=False), keep], **options)
    assert len(set(seen.psnrs)) == 6
    order = sorted(range(6), key=lambda i: seen.psnrs[i], reverse=mode == "max")
    assert {f.name for f in (tmp_path / "kept").iterdir()} == {f"step={2 * i + 2}.ckpt" for i in order[:2]}
    assert Path(keep.best_model_path).name == f"step={2 * order[0] + 2}.ckpt"
    loaded = InstantNGP.load_from_checkpoint(keep.best_model_path)
    (score,) = run.validate(loaded, datamodule=tiny_scene(scene_cache), verbose=False)
    assert score["val/psnr"] == pytest.approx(seen.psnrs[order[0]], abs=1e-4)


def test_learning_rate_monitor_logs_the_schedule(tmp_path: Path, scene_cache: Path) -> None:
    logger = CSVLogger(tmp_path, "logs")
    options = {"max_steps": 12, "logger": logger, "log_every_n_steps": 1, "callbacks": [LearningRateMonitor()]}
    seen, _, _ = fit(tmp_path, scene_cache, **options)
    logger.save()
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        logged = [float(row["lr-FusedAdam/field"]) for row in csv.DictReader(file)]
    assert len(set(seen.rates)) > 6
    assert logged == pytest.approx(seen.rates)


class Anomalous(PlainField):
    """Its colors are fine; their derivative is not."""

    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:
        out = super().forward(positions, directions)
        return out._replace(rgb=out.rgb + (0 * out.rgb).sqrt())


@pytest.mark.filterwarnings("ignore:(Anomaly Detection has been enabled|Error detected in SqrtBackward)")
def test_detect_anomaly_names_the_operation(tmp_path: Path, scene_cache: Path) -> None:
    options: dict[str, Any] = {"module": tiny_module(field=Anomalous()), "max_steps": 2}
    try:
        with pytest.raises(RuntimeError, match=r"SqrtBackward.*nan"):
            fit(tmp_path, scene_cache, detect_anomaly=True, **options)
    finally:
        torch.autograd.set_detect_anomaly(False)
    _, run, _ = fit(tmp_path, scene_cache, **options)
    assert int(run.optimizers[0].skipped) == 2  # type: ignore[attr-defined]


# -- precision --------------------------------------------------------------------------------------------------------


class Dtypes(L.Callback):
    """Of what the field's layers give, in training and in validation."""

    def __init__(self) -> None:
        self.training: set[torch.dtype] = set()
        self.evaluation: set[torch.dtype] = set()

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        def note(layer: Any, args: Any, output: Tensor) -> None:
            (self.training if layer.training else self.evaluation).add(output.dtype)

        pl_module.field.color_net[0].register_forward_hook(note)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", 32, "bf16", 16])
@pytest.mark.filterwarnings("ignore:`precision=(16|bf16)` is supported for historical reasons")
@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU. Using `precision='bf16-mixed'`")
def test_precision_is_that_of_the_layers(tmp_path: Path, scene_cache: Path, precision: Any) -> None:
    dtypes = Dtypes()
    options = {"max_steps": 30, "val_check_interval": 30, "limit_val_batches": 1, "precision": precision}
    seen, _, module = fit(tmp_path, scene_cache, callbacks=[dtypes], **options)
    expected = torch.float32 if str(precision).startswith("32") else torch.bfloat16
    assert dtypes.training == dtypes.evaluation == {expected}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert sum(seen.losses[-5:]) < sum(seen.losses[:5])


# -- what is refused, and by whom -------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"precision": "64-true", "max_steps": 2}, r"^precision: InstantNGP .*'32-true'.*got '64-true'"),
    ({"precision": "16-true", "max_steps": 2}, r"^precision: .*got '16-true'"),
    ({"precision": "bf16-true", "max_steps": 2}, r"^precision: .*got 'bf16-true'"),
    ({}, "max_steps: the schedule needs"),
    ({"max_steps": -1}, "max_steps: the schedule needs"),
    ({"max_epochs": 1}, "max_steps: the schedule needs"),
    ({"max_time": {"seconds": 1}}, "max_steps: the schedule needs"),
    ({"max_steps": 2, "overfit_batches": 0.5}, r"^overfit_batches: .*got 0\.5"),
    ({"max_steps": 2, "overfit_batches": 1.0}, r"^overfit_batches: .*got 1\.0"),
    # What follows Lightning refuses, since step numbers have no end that a share could be of.
    ({"max_steps": 2, "limit_train_batches": 0.5}, "limit_train_batches"),
    ({"max_steps": 2, "val_check_interval": 0.5, **ALL_VIEWS}, "val_check_interval"),
    ({"max_steps": 2, "callbacks": [EarlyStopping("val/psnr", mode="max")]}, "val/psnr"),  # nothing is validated
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=lambda value: re.sub(" at 0x\\w+", "", str(value)))
@pytest.mark.filterwarnings("ignore:`max_epochs` was not set")
def test_what_cannot_work_is_refused_by_name(
    tmp_path: Path, scene_cache: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(Exception, match=words):
        fit(tmp_path, scene_cache, **options)


# -- what changes nothing ---------------------------------------------------------------------------------------------

SAME: dict[str, Callable[[], dict[str, Any]]] = {
    "accelerator and devices": lambda: {"accelerator": "auto", "devices": 1},
    "barebones": lambda: {"barebones": True},
    "benchmark": lambda: {"benchmark": True},
    "deterministic": lambda: {"deterministic": True},
    "inference_mode": lambda: {"inference_mode": False, "val_check_interval": 3, **ALL_VIEWS},
    "num_sanity_val_steps": lambda: {"num_sanity_val_steps": 1, **ALL_VIEWS},
    "profiler simple": lambda: {"profiler": "simple"},
    "profiler advanced": lambda: {"profiler": "advanced"},
    "reload_dataloaders_every_n_epochs": lambda: {"limit_train_batches": 2, "reload_dataloaders_every_n_epochs": 1},
    "sync_batchnorm": lambda: {"sync_batchnorm": True},
    "use_distributed_sampler": lambda: {"use_distributed_sampler": False},
    "val_check_interval": lambda: {"val_check_interval": 2, "check_val_every_n_epoch": None, **ALL_VIEWS},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, scene_cache: Path) -> tuple[Seen, InstantNGP]:
    seen, _, module = fit(tmp_path_factory.mktemp("plain"), scene_cache, max_steps=6)
    return seen, module


@pytest.mark.parametrize("name", SAME)
@pytest.mark.filterwarnings("ignore:GPU available but not used")
def test_flags_that_leave_training_as_it_is(
    tmp_path: Path, scene_cache: Path, plain: tuple[Seen, InstantNGP], name: str
) -> None:
    try:
        seen, _, module = fit(tmp_path, scene_cache, max_steps=6, **SAME[name]())
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False
    assert seen.losses == plain[0].losses
    for key, value in plain[1].state_dict().items():
        assert torch.equal(module.state_dict()[key], value), key
