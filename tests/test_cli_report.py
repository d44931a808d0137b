"""What `test`, `validate` and a fit say at their end: the score, where its files are, what to type next."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lightning_nerf.cli import build
from lightning_nerf.losses import Photometric
from tests.scenes import tiny_scene
from tests.test_cli_commands import NO_BAR, RECIPE, command, copied, refused, run, tiny

__all__ = ["copied", "run", "tiny"]  # fixtures


@pytest.mark.filterwarnings("ignore:Total length of `ViewIndices`")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the last command leaves callbacks out
@pytest.mark.parametrize(
    ("subcommand", "views", "written"),
    [
        ("test", "2 held-out views on white (", "results.json, images/test_*.png"),
        ("validate", "5 validation views on white\n", "images/val_*.png"),
    ],
)
def test_a_score_ends_with_its_numbers_its_files_and_the_next_command(
    subcommand: str, views: str, written: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-c", str(copied / "config.yaml"), "--ckpt_path", str(copied), NO_BAR]
    cli = command(subcommand, *words)
    numbers = {name.partition("/")[2]: float(value) for name, value in cli.trainer.callback_metrics.items()}
    out = capsys.readouterr().out
    assert f"\nsynthetic: PSNR {numbers['psnr']:.2f} dB, SSIM {numbers['ssim']:.4f} over {views}" in out
    *_, files, folder, following = out.splitlines()
    assert files == f"written: {written}"
    assert Path(folder) == copied.with_name("version_1")
    for pattern in written.split(", "):
        assert list(Path(folder).glob(pattern))
    (checkpoint,) = copied.rglob("*.ckpt")
    assert (
        following
        == {
            "test": f"next: lightning-nerf render {checkpoint} --path orbit --out orbit.gif",
            "validate": f"next: lightning-nerf test {' '.join(words)}",
        }[subcommand]
    )
    command(subcommand, *words, "--trainer.callbacks=[]")
    assert f"{subcommand}: no callback has scored the views; --trainer.callbacks+=PSNRLogger" in capsys.readouterr().out


def test_a_fit_without_test_views_ends_well_and_says_so(
    scene_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    scene = tiny_scene(scene_cache)
    scene.prepare_data()
    shutil.copytree(scene.source.root, "capture")  # type: ignore[attr-defined]
    Path("capture/transforms_test.json").unlink()
    overlay = ["-c", "blender/instant_ngp", "-c", "overlays/small", "--data.root=capture", "--data.downscale=1"]
    command("fit", *overlay, "--trainer.accelerator=cpu", "--trainer.max_steps=2", NO_BAR)
    said, folder, following = capsys.readouterr().out.splitlines()[-3:]
    assert said == "fit: nothing was tested, since the data have no test views"
    assert folder == "runs/blender/instant_ngp/version_0"
    assert following == f"next: lightning-nerf render {folder} --path orbit --out orbit.gif"
    assert "no view can be tested" in refused("test", *overlay, "--ckpt_path", folder)


@pytest.mark.parametrize("subcommand", ["test", "validate", "predict"])
def test_weights_that_were_not_trained_are_told(subcommand: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(subcommand, "-c", str(copied / "config.yaml"), NO_BAR)
    printed = capsys.readouterr()
    assert f"lightning-nerf {subcommand}: no --ckpt_path is given" in printed.err
    assert "next: " not in printed.out


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty")
def test_a_score_of_another_run_in_the_folder_is_not_told(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a given version, whose folder is used again by a run without RunResults."""
    words = ["-c", str(copied / "config.yaml"), "--ckpt_path", str(copied), NO_BAR, "--trainer.logger.version=7"]
    command("test", *words)
    results = copied.with_name("version_7") / "results.json"
    results.write_text(results.read_text().replace('"psnr": ', '"psnr": 9'))
    capsys.readouterr()
    cli = command("test", *words, "--trainer.callbacks=PSNRLogger")
    assert f"PSNR {float(cli.trainer.callback_metrics['test/psnr']):.2f} dB" in capsys.readouterr().out


def test_a_fit_ends_with_the_next_command(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command("fit", *tiny, NO_BAR, "-c", RECIPE)
    folder, following = capsys.readouterr().out.splitlines()[-2:]
    assert folder == "runs/synthetic/instant_ngp/version_0"
    assert following == f"next: lightning-nerf render {folder} --path orbit --out orbit.gif"
    command("fit", *tiny, NO_BAR, "-c", RECIPE, "--trainer.enable_checkpointing=false")
    assert capsys.readouterr().out.splitlines()[-1] == "runs/synthetic/instant_ngp/version_1"


class OwnLoss(Photometric):
    """A class of another package than this one."""


def test_the_next_command_allows_the_packages_of_ones_own_parts(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = [*tiny, NO_BAR, "-c", RECIPE, "--model.losses=[{class_path: tests.test_cli_report.OwnLoss}]"]
    command("fit", *own, "--allow", "further")
    folder, following = capsys.readouterr().out.splitlines()[-2:]
    allowed = "--allow further --allow tests"
    assert following == f"next: lightning-nerf render {folder} {allowed} --path orbit --out orbit.gif"
    command("test", *own, "--ckpt_path", folder)
    assert " --allow tests --path orbit" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("place", ["file", "word"])
def test_a_limit_of_one_is_one_batch(place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "limits.yaml").write_text("trainer: {limit_test_batches: 1, limit_train_batches: 1.0}")
    typed = ["--trainer.limit_test_batches=1", "--trainer.limit_train_batches", "1.0"]
    words = ["-c", "synthetic/instant_ngp", *(typed if place == "word" else ["-c", "limits.yaml"])]
    trainer = build([*words, f"--data.cache_dir={tmp_path}"]).trainer
    assert isinstance(trainer.limit_test_batches, int)
    assert trainer.limit_test_batches == 1
    assert isinstance(trainer.limit_train_batches, float)
