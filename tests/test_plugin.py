"""A third party's package (tests/plugin), which knows this one by its public names only, from training to pictures."""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import lightning as L
import pytest
import torch
from nerf_plugin import (
    AgreeingRounds,
    CoarseToFine,
    LabelAccuracy,
    LabelField,
    LabelNeRF,
    OffloadExecutor,
    TintedField,
    TurningField,
    TwoBalls,
    UniformSamples,
)

from lightning_nerf import ExecutorStrategy, NeRFDataModule, NeRFModule, OccupancyGrid, Photometric
from lightning_nerf.callbacks import EMAWeights, PSNRLogger
from lightning_nerf.cli import main
from lightning_nerf.modules import WarmupDecay
from lightning_nerf.ops.random import make_key
from lightning_nerf.render.main import main as render
from tests.modules.test_kills import same
from tests.scenes import trainer

PLUGIN = Path(__file__).parent / "plugin"
RECIPE = str(PLUGIN / "recipe.yaml")


def python(*arguments: str, folder: Path, fails: bool = False) -> str:
    """What a process of its own prints, or, where it is to fail, complains about."""
    path = os.pathsep.join([str(PLUGIN), str(PLUGIN.parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment, timeout=300, check=False
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the recipe, by the command line in a process of its own."""
    folder = tmp_path_factory.mktemp("plugin")
    python("-m", "lightning_nerf", "fit", "-c", RECIPE, folder=folder)
    return folder / "runs/two_balls/version_0"


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return run / "checkpoints/last.ckpt"


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks"),  # a plain Trainer has fewer
]


def test_it_trains(run: Path) -> None:
    reached = results(run)
    assert reached["psnr"] > reached["psnr_of_mean_image"] + 5
    assert reached["steps"] == 150
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    (accuracy,) = (float(row["test/label_accuracy"]) for row in rows if row["test/label_accuracy"])
    assert accuracy > 0.95  # 0.91 by never saying "red"
    for loss in ("train/loss", "train/label_loss"):
        values = [float(row[loss]) for row in rows if row[loss]]
        assert values[-1] < values[0] / 4


def test_the_checkpoint_holds_names_and_numbers(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    model, data = content["hyper_parameters"], content["datamodule_hyper_parameters"]
    assert model["class_path"] == "nerf_plugin.module.LabelNeRF"
    assert model["init_args"]["label_weight"] == 0.1
    assert model["init_args"]["field"]["init_args"] == {"width": 32, "n_levels": 4}
    assert model["init_args"]["estimator"] == {"class_path": "nerf_plugin.estimator.UniformSamples", "init_args": {"n": 32}}
    assert data["class_path"] == "lightning_nerf.data.base.NeRFDataModule"
    source = data["init_args"]["source"]
    assert source["class_path"] == "nerf_plugin.data.TwoBalls"
    assert {name: source["init_args"][name] for name in ("resolution", "n_train", "n_test")} == {
        "resolution": 32, "n_train": 20, "n_test": 4,
    }  # fmt: skip


def test_a_plain_trainer_tests_and_resumes_it(checkpoint: Path, run: Path, tmp_path: Path) -> None:
    module, data = NeRFModule.load_from_checkpoint(checkpoint), NeRFDataModule.load_from_checkpoint(checkpoint)
    assert (type(module), type(data.source)) == (LabelNeRF, TwoBalls)
    plain = trainer(tmp_path, callbacks=[PSNRLogger(), LabelAccuracy()])
    (score,) = plain.test(module, data, verbose=False)
    assert score["test/psnr"] == pytest.approx(results(run)["psnr"], abs=1e-4)  # that process had one thread
    again = trainer(tmp_path, max_steps=153, callbacks=[EMAWeights()])
    again.fit(NeRFModule.load_from_checkpoint(checkpoint), data, ckpt_path=checkpoint)
    assert again.global_step == 153


def test_the_command_line_tests_and_resumes_it(
    checkpoint: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command, further in (("test", []), ("fit", ["--trainer.max_steps=153"])):
        monkeypatch.setattr(sys, "argv", ["lightning-nerf", command, "-c", RECIPE, f"--ckpt_path={checkpoint}", *further])
        cli = main()
        executor = cli.trainer.strategy.executor
        assert type(executor) is OffloadExecutor
        if command == "test":
            assert results(tmp_path / "runs/two_balls/version_0")["psnr"] == pytest.approx(results(run)["psnr"], abs=1e-4)
        else:
            assert (executor.steps, cli.trainer.global_step) == (3, 153)


def test_it_renders_from_the_checkpoint_alone(checkpoint: Path) -> None:
    rgb, label = render(
        [str(checkpoint), "--channels", "rgb", "label", "--data.source.n_test=2", "--trainer.accelerator=cpu"]
    )
    assert sorted(p.name for p in label.iterdir()) == ["test_0.png", "test_1.png"]
    colors, labels = (iio.imread(folder / "test_0.png").astype(float) for folder in (rgb, label))
    image = TwoBalls(n_test=2).read("test").picture(0).numpy()
    red, blue = ((image[..., 3] > 0) & (image[..., i] > image[..., 2 - i]) for i in (0, 2))
    assert labels[red].mean() > 200 > 50 > labels[blue].mean()
    assert colors[blue][:, 2].mean() > colors[blue][:, 0].mean() + 50


def test_it_renders_from_a_script_of_ten_lines(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        f"""
import imageio.v3 as iio
import torch
from lightning_nerf import NeRFDataModule, NeRFModule

module = NeRFModule.load_from_checkpoint({str(checkpoint)!r}, allow=["nerf_plugin"]).eval()
data = NeRFDataModule.load_from_checkpoint({str(checkpoint)!r}, allow=["nerf_plugin"])
seen = module.render_camera(data.scene("test").cameras, 0, torch.ones(3))
for name, picture in {{"rgb": seen.rgb, "label": seen.extras["label"].expand(-1, -1, 3)}}.items():
    iio.imwrite(name + ".png", (255 * picture.clamp(0, 1)).byte().numpy())
"""
    )
    python("script.py", folder=tmp_path)
    render([str(checkpoint), "--channels", "rgb", "label", "--n_frames=1", "--out=cli.png", "--trainer.accelerator=cpu"])
    for name in ("rgb", "label"):
        ours, theirs = iio.imread(f"{name}.png").astype(int), iio.imread(f"cli_{name}.png").astype(int)
        assert ours.std() > 10
        assert abs(ours - theirs).max() <= 1  # .byte() rounds down


def test_a_fresh_process_imports_it_only_where_it_is_allowed(checkpoint: Path, tmp_path: Path) -> None:
    """This process has imported the plugin, which would hide that another may not."""
    render = [
        "-m",
        "lightning_nerf",
        "render",
        str(checkpoint),
        "--n_frames=1",
        "--out=it.png",
        "--trainer.accelerator=cpu",
    ]
    refused = python(*render, folder=tmp_path, fails=True)
    assert re.fullmatch(
        r"lightning-nerf render: class_path: .* 'nerf_plugin\.module\.LabelNeRF'.*--allow nerf_plugin .*\n",
        refused.splitlines(keepends=True)[-1],
    )
    assert "Traceback" not in refused
    assert not (tmp_path / "it.png").exists()
    python(*render, "--allow", "nerf_plugin", folder=tmp_path)
    assert iio.imread(tmp_path / "it.png").std() > 10
    (tmp_path / "script.py").write_text(
        f"""
import lightning as L
from lightning_nerf import NeRFDataModule, NeRFModule

path, allow = {str(checkpoint)!r}, ["nerf_plugin"]
module, data = NeRFModule.load_from_checkpoint(path, allow=allow), NeRFDataModule.load_from_checkpoint(path, allow=allow)
trainer = L.Trainer(max_steps=152, logger=False, accelerator="cpu", enable_progress_bar=False, limit_val_batches=0)
trainer.fit(module, data, ckpt_path=path)
print(type(module).__name__, trainer.global_step)
"""
    )
    assert python("script.py", folder=tmp_path).splitlines()[-1] == "LabelNeRF 152"


# -- the other recipes: two rounds, a scene that moves; a contracted field, three levels and sizes, camera codes ----------

FLOORS = {"rounds": 3.0, "outside": 8.0}  # dB above predicting transparent pictures


@pytest.fixture(scope="module", params=sorted(FLOORS))
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one of them, by the command line in a process of its own."""
    folder = tmp_path_factory.mktemp(request.param)
    python("-m", "lightning_nerf", "fit", "-c", str(PLUGIN / f"{request.param}.yaml"), folder=folder)
    return folder / "runs" / request.param / "version_0"


def test_the_other_recipes_train(other: Path) -> None:
    data = NeRFDataModule.load_from_checkpoint(other / "checkpoints/last.ckpt")
    scene, white = data.scene("test"), torch.ones(3)
    blank = sum(float(-10 * (scene.truth(i, white) - white).square().mean().log10()) for i in range(4)) / 4
    assert results(other)["psnr"] > blank + FLOORS[other.parent.name]


def test_the_other_recipes_resume_and_test_in_a_plain_trainer(other: Path, tmp_path: Path) -> None:
    path = other / "checkpoints/last.ckpt"
    module, data = NeRFModule.load_from_checkpoint(path), NeRFDataModule.load_from_checkpoint(path)
    (score,) = trainer(tmp_path, callbacks=[PSNRLogger()]).test(module, data, verbose=False)
    assert score["test/psnr"] == pytest.approx(results(other)["psnr"], abs=1e-3)
    steps = results(other)["steps"] + 3
    again = trainer(tmp_path, max_steps=steps, callbacks=[EMAWeights()])
    again.fit(NeRFModule.load_from_checkpoint(path), data, ckpt_path=path)
    assert again.global_step == steps


def test_the_other_recipes_render_frames_of_any_camera(
    other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(other / "checkpoints/last.ckpt")
    (folder,) = render([path, "--trainer.accelerator=cpu", "--n_frames=3"])
    data = NeRFDataModule.load_from_checkpoint(path)
    pictures = [iio.imread(folder / f"test_{i}.png") for i in (0, 1, 2)]
    assert [p.shape[:2] for p in pictures] == [data.scene("test").cameras.shape(i) for i in (0, 1, 2)]
    (film,) = render([path, "--path=orbit", "--n_frames=3", "--out=orbit.gif", "--trainer.accelerator=cpu"])
    assert iio.imread(film).std() > 5


def test_outer_levels_are_filled_by_what_stands_there(other: Path) -> None:
    if other.parent.name != "outside":
        pytest.skip("one level")
    state = torch.load(other / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    binaries, aabb = state["estimator.binaries"], state["estimator.aabb"]
    assert binaries.shape[0] == 3
    for level in (1, 2):  # the green ball around (0, 0, -3.2): cells well inside, as cameras above it see its upper half
        half = 2.0**level * (aabb[1] - aabb[0]) / 2
        cell = ((torch.tensor([0.0, 0.0, -1.8]) + half) / (2 * half) * 24).long()
        assert bool(binaries[level][tuple(cell)])
        corner = ((torch.tensor([0.9, 0.9, 0.9]) * half + half) / (2 * half) * 24).long()
        assert not bool(binaries[level][tuple(corner)])


# -- in one process: to the bit ----------------------------------------------------------------------------------------

SMALL = {"samples_per_step": 1024, "max_rays": 64, "initial_rays": 32, "seed": 1}


def labels() -> tuple[NeRFModule, NeRFDataModule]:
    module = LabelNeRF(0.2, field=LabelField(8), estimator=UniformSamples(16), lr_scheduler=decay(), **SMALL)
    return module, NeRFDataModule(TwoBalls(16, 4, 2))


def rounds() -> tuple[NeRFModule, NeRFDataModule]:
    losses = [Photometric(), AgreeingRounds(0.01)]
    module = NeRFModule(TurningField(8), CoarseToFine(8, 8), losses=losses, lr_scheduler=decay(), **SMALL)
    return module, NeRFDataModule(TwoBalls(16, 4, 2, moving=True))


def outside() -> tuple[NeRFModule, NeRFDataModule]:
    grid = OccupancyGrid(12, n_levels=3, warmup_steps=4, step_size=0.1, cone_angle=0.02)
    module = NeRFModule(TintedField(4, 8), grid, lr_scheduler=decay(), **{**SMALL, "samples_per_step": 4096})
    return module, NeRFDataModule(TwoBalls(16, 4, 2, mixed=True, far_ball=True), contraction="l2")


def decay() -> Any:
    return functools.partial(WarmupDecay, total_steps=8)


METHODS = {"labels": labels, "rounds": rounds, "outside": outside}


def fitted(folder: Path, method: str, steps: int, **options: Any) -> tuple[NeRFModule, NeRFDataModule, Path]:
    ckpt_path = options.pop("ckpt_path", None)
    torch.manual_seed(0)
    module, data = METHODS[method]()
    fit = trainer(folder, max_steps=steps, **options)
    fit.fit(module, data, ckpt_path=ckpt_path)
    fit.save_checkpoint(folder / f"{steps}.ckpt")
    return module, data, folder / f"{steps}.ckpt"


@pytest.mark.parametrize("method", METHODS)
def test_executor_checkpoint_and_interruption_change_no_bit(method: str, tmp_path: Path) -> None:
    whole, _, _ = fitted(tmp_path, method, 8)
    executor = OffloadExecutor()
    fitted(tmp_path, method, 4, strategy=ExecutorStrategy(executor))
    resumed, _, path = fitted(tmp_path, method, 8, strategy=ExecutorStrategy(executor), ckpt_path=tmp_path / "4.ckpt")
    assert executor.steps == 8
    same(dict(whole.state_dict()), dict(resumed.state_dict()), "state_dict")
    loaded, data = NeRFModule.load_from_checkpoint(path), NeRFDataModule.load_from_checkpoint(path)
    cameras = data.scene("test").cameras
    for part, other in zip(*(m.render_camera(cameras, 1) for m in (whole, loaded)), strict=True):
        same(part, other, "render")


class Replays(L.Callback):
    """Counts the steps that were replayed."""

    replayed = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.replayed += pl_module.executor.replayed


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_replayed_from_cuda_graphs(method: str, tmp_path: Path) -> None:
    """The same weights to the bit as eager steps, in deterministic fits."""
    trained = {}
    for strategy in ("auto", "nerf_cuda_graph"):
        seen = Replays()
        options = {"accelerator": "gpu", "devices": 1, "deterministic": True, "strategy": strategy, "callbacks": [seen]}
        module, _, _ = fitted(tmp_path, method, 24, **options)
        assert (seen.replayed > 15) == (strategy == "nerf_cuda_graph")
        # The key names the last step after eager ones, the next one after replays.
        trained[strategy] = {name: value.cpu() for name, value in module.state_dict().items() if name != "key"}
    same(trained["auto"], trained["nerf_cuda_graph"], "state_dict")


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_replayed_fits_resume_and_render(method: str, tmp_path: Path) -> None:
    """To the bit what an uninterrupted one trains, and frames from its checkpoint."""
    options = {"accelerator": "gpu", "devices": 1, "deterministic": True, "strategy": "nerf_cuda_graph"}
    whole, _, _ = fitted(tmp_path, method, 24, **options)
    fitted(tmp_path, method, 12, **options)
    resumed, data, path = fitted(tmp_path, method, 24, ckpt_path=tmp_path / "12.ckpt", **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(value.cpu(), resumed.state_dict()[name].cpu()), name
    loaded = NeRFModule.load_from_checkpoint(path).cuda()
    frame = loaded.render_camera(data.scene("test").cameras, 1, torch.ones(3, device="cuda"))
    assert frame.rgb.shape[:2] == data.scene("test").cameras.shape(1)
    assert bool(frame.rgb.isfinite().all())


def test_each_loss_is_logged_and_weighted(tmp_path: Path) -> None:
    for method, name in (("labels", "label_loss"), ("rounds", "agreeing_rounds")):
        module, data, _ = fitted(tmp_path, method, 2)
        module.trainer.datamodule = data  # type: ignore[attr-defined]
        weighted, logs = module.render_loss()
        weight = module.losses[1].weight
        module.losses[1].weight = 0.0
        plain, _ = module.render_loss()
        assert float(logs[name]) > 0
        torch.testing.assert_close(weighted - plain, weight * logs[name])


def test_the_weights_of_the_first_round_have_gradients(tmp_path: Path) -> None:
    module, data, _ = fitted(tmp_path, "rounds", 2)
    batch = data.draw(module.key, 32)
    placement = module.estimator.place(batch.rays, module.field.query, key=module.key, capacity=512)
    (coarse,) = placement.rounds
    assert coarse.weights.requires_grad
    grads = torch.autograd.grad(coarse.weights.sum(), [p for p in module.field.parameters() if p is not module.field.angle])
    assert any(bool((g != 0).any()) for g in grads)
    assert len(placement.samples.t_starts) == 512
    inside = placement.samples.offsets.diff()
    assert set(inside.tolist()) <= {0, 8}


def test_the_estimator_keeps_the_conventions_of_packed_samples() -> None:
    data = NeRFDataModule(TwoBalls(8, 2, 1))
    estimator = UniformSamples(5).bind(data.scene_box)
    key = make_key(0)
    rays = data.draw(key, 40, torch.tensor(30)).rays
    exact = estimator.place(rays, key=key).samples
    per_ray = exact.offsets.diff()
    assert set(per_ray.tolist()) == {0, 5}
    assert (per_ray[30:] == 0).all()
    capped = estimator.place(rays, key=key, capacity=23).samples
    n = int(capped.offsets[-1])
    assert n == 20
    assert not capped.kept[-1]
    for ours, all_of_them in zip(capped[:3], exact[:3], strict=True):
        assert len(ours) == 23
        assert torch.equal(ours[:n], all_of_them[:n])
        assert (ours[n:] == 0).all()
