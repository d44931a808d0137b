"""What the commands do beside training: which views they score, what they print, what they leave, how they end."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from lightning_nerf import files
from lightning_nerf.callbacks import NeRFProgressBar, PSNRLogger
from lightning_nerf.cli import NeRFCLI, build, main
from lightning_nerf.cli_runs import saves_to_url
from lightning_nerf.cli_trainer import with_bar
from tests.callbacks.test_interruption import Sends

RECIPE = "synthetic/instant_ngp"
NO_BAR = "--trainer.enable_progress_bar=false"


@pytest.fixture(scope="module")
def tiny(scene_cache: Path) -> list[str]:
    """Arguments that make the recipe small."""
    callbacks = [f"--trainer.callbacks+={name}" for name in ("EMAWeights", "PSNRLogger", "ImageLogger", "RunResults")]
    return [
        "--trainer.accelerator=cpu", "--trainer.max_steps=4", "--data.resolution=24", "--data.n_train=5", "--data.n_test=2",
        f"--data.cache_dir={scene_cache}", "--model.samples_per_step=1024", "--trainer.callbacks=[]",
        *callbacks,
    ]  # fmt: skip


def command(*words: str) -> NeRFCLI:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lightning-nerf", *words])
        return main()


def refused(*words: str) -> str:
    """The one line with which a command ends."""
    with pytest.raises(SystemExit) as caught:
        command(*words)
    line = str(caught.value.code)
    assert line.startswith("lightning-nerf: ")
    assert "\n" not in line
    return line


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """The folder of a run, ``runs/synthetic/instant_ngp/version_0`` of some folder."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command("fit", *tiny, "-c", RECIPE, NO_BAR)
    return folder / "runs/synthetic/instant_ngp/version_0"


@pytest.fixture
def copied(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.parents[2], tmp_path / "runs")
    return Path("runs/synthetic/instant_ngp/version_0")


def test_arguments_win_over_a_recipe_behind_them(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli = command("fit", *tiny, NO_BAR, "--trainer.max_steps=2", "-c", RECIPE)
    assert cli.trainer.global_step == 2
    assert build(["--trainer.max_steps=3", *tiny[2:], "-c", RECIPE]).trainer.max_steps == 3


# -- the progress bar ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [NeRFProgressBar]),
        ([NO_BAR], []),
        (["--trainer.callbacks+=TQDMProgressBar"], [TQDMProgressBar]),
        (["--trainer.callbacks+=lightning_nerf.callbacks.NeRFProgressBar", NO_BAR], []),
        (["--trainer.callbacks+=NeRFProgressBar", "--trainer.callbacks.refresh_rate=7"], [NeRFProgressBar]),
    ],
)
def test_there_is_one_bar_or_none(arguments: list[str], expected: list[type], tiny: list[str]) -> None:
    bars = [c for c in build(["-c", RECIPE, *tiny, *arguments]).trainer.callbacks if isinstance(c, ProgressBar)]
    assert [type(bar) for bar in bars] == expected
    if arguments[-1:] == ["--trainer.callbacks.refresh_rate=7"]:
        assert bars[0].refresh_rate == 7  # type: ignore[attr-defined]


def test_the_last_bar_counts() -> None:
    first, last, other = TQDMProgressBar(), NeRFProgressBar(), PSNRLogger()
    assert with_bar([first, other, last], has_bar=True) == [other, last]
    assert with_bar([first, other], has_bar=False) == [other]
    assert with_bar(other, has_bar=False) == [other]
    (bar,) = with_bar(None, has_bar=True)
    assert type(bar) is NeRFProgressBar


# -- what commands score and print ----------------------------------------------------------------------------------------


def test_a_run_says_nothing_that_is_not_the_users(
    copied: Path, tiny: list[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with caplog.at_level("INFO"):
        command("fit", "-c", RECIPE, *tiny, NO_BAR, "--trainer.max_steps=5", f"--ckpt_path={copied}")
    assert [str(warning.message) for warning in recwarn] == []
    assert "Tip" not in caplog.text
    assert "TPU" not in caplog.text
    assert "GPU available" in caplog.text  # which device it is on is of interest


@pytest.mark.filterwarnings("ignore:Total length of `ViewIndices`")
def test_a_validation_that_is_asked_for_takes_place(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert yaml.safe_load((copied / "config.yaml").read_text())["trainer"]["limit_val_batches"] == 0
    arguments = ["validate", "-c", str(copied / "config.yaml"), "--ckpt_path", str(copied), NO_BAR]
    cli = command(*arguments)
    assert cli.trainer.num_val_batches == [5]
    assert 0 < float(cli.trainer.callback_metrics["val/psnr"]) < 100
    folders = set(copied.parent.iterdir())
    assert "no validation views" in refused(*arguments, "--data.n_val=0")
    assert set(copied.parent.iterdir()) == folders


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the test leaves callbacks out
def test_predict_prints_where_the_pictures_are(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", "-c", str(copied / "config.yaml"), "--ckpt_path", str(copied), NO_BAR]
    command(*arguments)
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert sorted(path.name for path in folder.iterdir()) == ["r_0.png", "r_1.png"]
    command(*arguments, "--trainer.callbacks=[]")
    assert "no callback has saved the pictures; --trainer.callbacks+=ImageLogger does" in capsys.readouterr().err


def test_a_run_folder_stands_for_its_newest_checkpoint(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint,) = copied.rglob("*.ckpt")
    broken = checkpoint.with_name("a.ckpt")
    broken.write_bytes(b"")
    os.utime(broken, (1, 1))
    for given in ([str(copied)], [str(broken), str(checkpoint)]):
        cli = command("test", "-c", str(copied / "config.yaml"), "--ckpt_path", *given, NO_BAR)
        assert cli.trainer.ckpt_path == str(checkpoint)


# -- going on ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error:.*ckpt_path")
def test_last_on_a_first_start_is_one_line(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cli = command("fit", *tiny, NO_BAR, "-c", RECIPE, "--ckpt_path", "last")
    assert cli.trainer.global_step == 4
    said = "--ckpt_path last: no run of this model and these data has left a checkpoint; a new run begins\n"
    assert capsys.readouterr().out.count(said) == 1


@pytest.mark.parametrize(("name", "url"), [("runs", False), ("s3://bucket/runs", True)])
def test_last_is_left_to_lightning_where_runs_go_to_a_url(name: str, url: bool) -> None:
    checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": name}}
    assert saves_to_url({"callbacks": [checkpoint], "logger": None}) is url
    assert saves_to_url({"logger": [{"class_path": "CSVLogger", "init_args": {"save_dir": name}}]}) is url
    assert saves_to_url({"logger": False, "default_root_dir": name}) is url


@pytest.mark.parametrize("words", [["--resume"], ["--ckpt_path=last"]])
def test_a_fit_goes_on_from_the_latest_run_of_its_recipe(
    words: list[str], copied: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli = command("fit", *tiny, "-c", RECIPE, NO_BAR, "--trainer.max_steps=6", *words)
    assert "going on from runs/synthetic/instant_ngp/version_0/checkpoints/epoch=0-step=4.ckpt\n" in capsys.readouterr().out
    assert cli.trainer.global_step == 6
    assert yaml.safe_load((copied.with_name("version_1") / "config.yaml").read_text())["ckpt_path"] is None
    command("fit", *tiny, "-c", RECIPE, NO_BAR, "--trainer.max_steps=7", *words)
    assert "going on from runs/synthetic/instant_ngp/version_1/" in capsys.readouterr().out


def test_a_run_of_other_data_is_not_gone_on_from(copied: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    other = ["fit", *tiny, "-c", RECIPE, NO_BAR, "--data.n_train=4"]
    line = refused(*other, "--resume")
    assert "no run of this model and these data has left a checkpoint in runs/synthetic/instant_ngp" in line
    command(*other, "--ckpt_path=last")
    printed = capsys.readouterr()
    assert "no run of this model and these data has left a checkpoint; a new run begins" in printed.out + printed.err
    assert "going on" not in printed.out


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_the_folder_of_a_model_checkpoint_or_of_a_version_is_looked_in(
    copied: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint,) = copied.rglob("*.ckpt")
    own = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=mine"]
    assert "has left a checkpoint" in refused("fit", *tiny, "-c", RECIPE, NO_BAR, *own, "--resume")
    Path("mine").mkdir()
    shutil.copy(checkpoint, "mine/last.ckpt")
    command("fit", *tiny, "-c", RECIPE, NO_BAR, *own, "--resume", "--trainer.max_steps=5")
    assert "going on from mine/last.ckpt\n" in capsys.readouterr().out
    versions = ["--trainer.logger.init_args.version=a"]
    assert "has left a checkpoint" in refused("fit", *tiny, "-c", RECIPE, NO_BAR, *versions, "--resume")


# -- how commands end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_fit_says_where_it_is_saved_and_how_to_go_on(
    number: int,
    code: int,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PSNRLogger, "on_train_batch_end", Sends(number, "x", 2).send)
    with pytest.raises(SystemExit) as caught:
        command("fit", *tiny, NO_BAR, "-c", RECIPE)
    assert caught.value.code == code
    path = "runs/synthetic/instant_ngp/version_0/checkpoints/interrupted-step=2.ckpt"
    said = capsys.readouterr().err.splitlines()[-3:]
    assert said[0] == f"lightning-nerf fit: interrupted by {signal.Signals(number).name}"
    assert said[1] == f"step 2 is saved in {path}"
    assert said[2].startswith(f"next: lightning-nerf fit -c {RECIPE} ")
    assert said[2].endswith(f" --ckpt_path={path}")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert command("fit", *tiny, NO_BAR, "-c", RECIPE, "--resume").trainer.global_step == 4


def test_an_interrupted_test_exits_with_the_signals_code(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PSNRLogger, "on_test_batch_end", Sends(signal.SIGTERM, "x", 0).send)
    with pytest.raises(SystemExit) as caught:
        command("test", "-c", str(copied / "config.yaml"), "--ckpt_path", str(copied), NO_BAR)
    assert caught.value.code == 143
    assert capsys.readouterr().err.splitlines()[-1] == "lightning-nerf test: interrupted by SIGTERM"


def test_a_refused_fit_leaves_no_folder(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = ["-c", "blender/instant_ngp", "--trainer.accelerator=cpu"]
    assert "root: no folder" in refused("fit", *recipe, "--data.root=absent")
    assert not list(tmp_path.rglob("version_*"))
    kept = tmp_path / "runs/blender/instant_ngp/version_0"
    kept.mkdir(parents=True)
    assert "root: no folder" in refused("fit", *recipe, "--data.root=absent")
    assert list(kept.parent.iterdir()) == [kept]  # it was there before


@pytest.mark.filterwarnings("ignore:.*is lost, the run goes on")
@pytest.mark.parametrize("subcommand", ["test", "predict", "validate"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_is_one_line(
    subcommand: str, number: int, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    def save(*others: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number), "config.yaml")

    arguments = [subcommand, "-c", str(copied / "config.yaml"), "--ckpt_path", str(copied), NO_BAR]
    monkeypatch.setattr(files.os, "fsync", sync)
    if subcommand == "validate":  # it writes nothing but its configuration
        monkeypatch.setattr("lightning_nerf.cli.BriefParser.save", save)
    line = refused(*arguments)
    assert ("the disk is full" if number == errno.ENOSPC else "ead-only file system") in line or "No space left" in line


@pytest.mark.parametrize("subcommand", ["test", "predict"])
def test_a_folder_that_cannot_be_written_to_is_one_line(subcommand: str, copied: Path) -> None:
    arguments = [subcommand, "-c", str(copied / "config.yaml"), "--ckpt_path", str(copied), NO_BAR]
    assert "nothing can be written there" in refused(*arguments, "--trainer.logger.init_args.save_dir=/dev/null/x")


@pytest.mark.parametrize(("name", "logger"), [("wandb", "WandbLogger"), ("tensorboard", "TensorBoardLogger")])
def test_a_logger_that_is_not_installed_is_one_line(
    name: str, logger: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = sys.modules[L.pytorch.loggers.CSVLogger.__module__.replace("csv_logs", name)]
    for flag in ("_WANDB_AVAILABLE", "_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        for holder in (module, sys.modules["lightning.fabric.loggers.tensorboard"]):
            if hasattr(holder, flag):
                monkeypatch.setattr(holder, flag, Missing())
    assert name in refused("fit", *tiny, NO_BAR, "-c", RECIPE, f"--trainer.logger={logger}", "--trainer.logger.save_dir=.")


def test_a_logger_of_a_list_that_is_not_installed_is_one_line(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for flag in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{flag}", Missing())
    loggers = [
        {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": {"save_dir": "."}}
        for name in ("CSVLogger", "TensorBoardLogger")
    ]
    Path("loggers.yaml").write_text(yaml.safe_dump({"trainer": {"logger": loggers}}))
    said = refused("fit", *tiny, NO_BAR, "-c", RECIPE, "-c", "loggers.yaml")
    assert said.startswith("lightning-nerf: trainer.logger: TensorBoardLogger: Neither `tensorboard` nor `tensorboardX`")
    assert "pip install" in said
    assert "Expected" not in said


def test_wandb_without_an_account_is_one_line(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)

    def refuses(*_: object, **__: object) -> None:
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuses)
    said = refused("fit", *tiny, NO_BAR, "-c", RECIPE, "-c", "overlays/wandb")
    assert (
        "No API key configured. Use `wandb login` to log in. (without an account or a network: WANDB_MODE=offline" in said
    )


class Missing:
    """As a requirement that is not met."""

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return "Requirement 'wandb, tensorboard' not met.\nHINT: Try running `pip install -U ...`"
