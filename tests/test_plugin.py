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
import pytest
import torch
from nerf_plugin import LabelAccuracy, LabelField, LabelNeRF, OffloadExecutor, TwoBalls, UniformSamples

from lightning_nerf import ExecutorStrategy, NeRFDataModule, NeRFModule
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
    assert data["class_path"] == "nerf_plugin.data.TwoBalls"
    assert data["init_args"] == {"resolution": 32, "n_train": 20, "n_test": 4, "background": "white"}


def test_a_plain_trainer_tests_and_resumes_it(checkpoint: Path, run: Path, tmp_path: Path) -> None:
    module, data = NeRFModule.load_from_checkpoint(checkpoint), NeRFDataModule.load_from_checkpoint(checkpoint)
    assert (type(module), type(data)) == (LabelNeRF, TwoBalls)
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
    rgb, label = render([str(checkpoint), "--channels", "rgb", "label", "--data.n_test=2", "--trainer.accelerator=cpu"])
    assert sorted(p.name for p in label.iterdir()) == ["test_0.png", "test_1.png"]
    colours, labels = (iio.imread(folder / "test_0.png").astype(float) for folder in (rgb, label))
    views = TwoBalls(n_test=2).views("test")
    image = views.images[0].numpy()
    red, blue = ((image[..., 3] > 0) & (image[..., i] > image[..., 2 - i]) for i in (0, 2))
    assert labels[red].mean() > 200 > 50 > labels[blue].mean()
    assert colours[blue][:, 2].mean() > colours[blue][:, 0].mean() + 50


def test_it_renders_from_a_script_of_ten_lines(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        f"""
import imageio.v3 as iio
import torch
from lightning_nerf import NeRFDataModule, NeRFModule

module = NeRFModule.load_from_checkpoint({str(checkpoint)!r}, allow=["nerf_plugin"]).eval()
data = NeRFDataModule.load_from_checkpoint({str(checkpoint)!r}, allow=["nerf_plugin"])
seen = module.render_camera(data.views("test"), 0, data.near, data.far, torch.ones(3))
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


# -- in one process: to the bit ----------------------------------------------------------------------------------------


def module() -> LabelNeRF:
    torch.manual_seed(0)
    decay = functools.partial(WarmupDecay, total_steps=8)
    small = {"samples_per_step": 1024, "max_rays": 64, "initial_rays": 32}
    return LabelNeRF(0.2, field=LabelField(8), estimator=UniformSamples(16), lr_scheduler=decay, seed=1, **small)


def fitted(folder: Path, steps: int, **options: Any) -> tuple[LabelNeRF, Path]:
    ckpt_path = options.pop("ckpt_path", None)
    fit, trained = trainer(folder, max_steps=steps, **options), module()
    fit.fit(trained, TwoBalls(16, 4, 2), ckpt_path=ckpt_path)
    fit.save_checkpoint(folder / f"{steps}.ckpt")
    return trained, folder / f"{steps}.ckpt"


def test_executor_checkpoint_and_interruption_change_no_bit(tmp_path: Path) -> None:
    whole, _ = fitted(tmp_path, 8)
    executor = OffloadExecutor()
    fitted(tmp_path, 4, strategy=ExecutorStrategy(executor))
    resumed, path = fitted(tmp_path, 8, strategy=ExecutorStrategy(executor), ckpt_path=tmp_path / "4.ckpt")
    assert executor.steps == 8
    same(dict(whole.state_dict()), dict(resumed.state_dict()), "state_dict")
    loaded, data = LabelNeRF.load_from_checkpoint(path), TwoBalls.load_from_checkpoint(path)
    views = data.views("test")
    for part, other in zip(*(m.render_camera(views, 1, data.near, data.far) for m in (whole, loaded)), strict=True):
        same(part, other, "render")


def test_the_loss_is_the_third_partys(tmp_path: Path) -> None:
    trained, _ = fitted(tmp_path, 2)
    trained.trainer.datamodule = TwoBalls(16, 4, 2)  # type: ignore[attr-defined]
    weighted, logs = trained.render_loss()
    trained.label_weight = 0.0
    plain, _ = trained.render_loss()
    assert float(logs["label_loss"]) > 0
    torch.testing.assert_close(weighted - plain, 0.2 * logs["label_loss"])


def test_the_estimator_keeps_the_conventions_of_packed_samples() -> None:
    data, estimator = TwoBalls(8, 2, 1), UniformSamples(5).bind(TwoBalls().scene_box)
    key = make_key(0)
    rays = data.draw(key, 40, torch.tensor(30)).rays
    exact = estimator.sample(rays, key=key)
    per_ray = exact.offsets.diff()
    assert set(per_ray.tolist()) == {0, 5}
    assert (per_ray[30:] == 0).all()
    capped = estimator.sample(rays, key=key, capacity=23)
    n = int(capped.offsets[-1])
    assert n == 20
    assert not capped.kept[-1]
    for ours, all_of_them in zip(capped[:3], exact[:3], strict=True):
        assert len(ours) == 23
        assert torch.equal(ours[:n], all_of_them[:n])
        assert (ours[n:] == 0).all()
