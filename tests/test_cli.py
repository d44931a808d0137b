from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger

from lightning_nerf.cli import NeRFCLI, main, resolve_arguments
from lightning_nerf.cli_quiet import quiet
from lightning_nerf.recipes import recipe_names, resolve_recipe

KEYS = {
    "recipe", "scene", "split", "images", "psnr", "ssim", "steps", "training_seconds", "ms_per_step", "samples_per_second",
    "peak_memory_gib", "device", "versions", "seed",
}  # fmt: skip


WANDB, CSV = "lightning.pytorch.loggers.WandbLogger", "lightning.pytorch.loggers.CSVLogger"


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # the test run has a folder of its own
def test_fit_ends_with_results_and_pictures(
    tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        "fit", "-c", "synthetic/instant_ngp", "--trainer.accelerator=cpu", "--trainer.max_steps=8",
        "--data.resolution=24", "--data.n_train=5", "--data.n_test=2", f"--data.cache_dir={scene_cache}",
        "--model.samples_per_step=1024",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["lightning-nerf", *arguments])
    main()
    (folder,) = (tmp_path / "runs/synthetic/instant_ngp").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert set(results) >= KEYS
    assert results["steps"] == 8
    assert results["images"] == 2
    assert results["recipe"] == "synthetic/instant_ngp"
    assert results["training_seconds"] > 0
    assert 5 < results["psnr"] < 60
    assert len(list((folder / "images").glob("test_*.png"))) == 2
    assert list(folder.glob("turntable.*"))
    assert (folder / "config.yaml").is_file()

    checkpoint = next(folder.rglob("*.ckpt"))
    monkeypatch.setattr(sys, "argv", ["lightning-nerf", "test", *arguments[1:], f"--ckpt_path={checkpoint}"])
    cli = main()
    assert float(cli.trainer.callback_metrics["test/psnr"]) == pytest.approx(results["psnr"], abs=1e-4)

    assert "; 8 steps in " in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["lightning-nerf", *arguments, f"--ckpt_path={checkpoint}"])
    main()
    assert "; no step was left\n" in capsys.readouterr().out


def test_a_trial_run_names_no_folder(
    scene_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "fit", "-c", "synthetic/instant_ngp", "--trainer.accelerator=cpu", "--trainer.fast_dev_run=true",
        "--data.resolution=24", "--data.n_train=5", "--data.n_test=2", f"--data.cache_dir={scene_cache}",
        "--model.samples_per_step=1024",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["lightning-nerf", *arguments])
    main()
    out = capsys.readouterr().out
    assert "PSNR" in out
    assert "fast_dev_run-" not in out


@pytest.mark.parametrize(
    ("class_path", "given", "environment", "expected"),
    [
        (WANDB, {"id": None, "version": None}, {}, "a1b2"),
        (WANDB, {"id": "mine", "version": None}, {}, "mine"),
        (WANDB, {"id": None, "version": "mine"}, {}, None),
        (WANDB, {"id": None, "version": None}, {"WANDB_RUN_ID": "mine"}, None),
        (CSV, {"version": None}, {}, None),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_a_resumed_fit_is_given_the_checkpoints_wandb_run(
    class_path: str, given: dict[str, Any], environment: dict[str, str], expected: str | None, several: bool,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    torch.save({"wandb_run_id": "a1b2"}, tmp_path / "last.ckpt")
    logger = Namespace(class_path=class_path, init_args=Namespace(given))
    fit = Namespace(ckpt_path=str(tmp_path / "last.ckpt"), trainer=Namespace(logger=[logger] if several else logger))
    NeRFCLI._find_wandb_run(SimpleNamespace(resumed=[]), fit)  # type: ignore[arg-type]
    assert logger.init_args.get("id") == expected


class Known(CSVLogger):
    """Is given its id, and runs without one, as W&B's."""

    def __init__(self, save_dir: str, id: str | None = None, version: str | None = None) -> None:
        super().__init__(save_dir, "", id or version or "new")


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:.* exists and is not empty")
def test_a_runs_config_begins_a_run_of_its_own(tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the run was resumed, or tested later under its id."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    monkeypatch.setattr("tests.test_cli.WandbLogger", Known, raising=False)
    tiny = [
        "-c", "synthetic/instant_ngp", "--trainer.accelerator=cpu", "--data.resolution=24", "--data.n_train=5",
        "--data.n_test=2", f"--data.cache_dir={scene_cache}", "--model.samples_per_step=1024",
        "--trainer.callbacks=[lightning_nerf.callbacks.EMAWeights]",
        "--trainer.logger=tests.test_cli.WandbLogger", "--trainer.logger.save_dir=runs",
    ]  # fmt: skip

    def command(*arguments: str) -> NeRFCLI:
        monkeypatch.setattr(sys, "argv", ["lightning-nerf", *arguments])
        return main()

    checkpoint = tmp_path / "a.ckpt"
    command("fit", *tiny, "--trainer.max_steps=1").trainer.save_checkpoint(checkpoint)
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "wandb_run_id": "a1b2"}, checkpoint)
    command("fit", *tiny, "--trainer.max_steps=2", f"--ckpt_path={checkpoint}")
    saved = (tmp_path / "runs/a1b2/config.yaml").read_text()
    config = yaml.safe_load(saved)
    assert config["ckpt_path"] is None
    assert config["trainer"]["logger"]["init_args"]["id"] is None
    command("test", *tiny, f"--ckpt_path={checkpoint}", "--trainer.logger.id=a1b2")
    assert (tmp_path / "runs/a1b2/config.yaml").read_text() == saved
    command("test", *tiny, f"--ckpt_path={checkpoint}", "--trainer.logger.id=tested")
    assert yaml.safe_load((tmp_path / "runs/tested/config.yaml").read_text())["ckpt_path"] is None


@pytest.mark.parametrize("logger", [None, True, False])
def test_a_resumed_fit_needs_no_logger(logger: bool | None) -> None:
    fit = Namespace(ckpt_path="last", trainer=Namespace(logger=logger))
    NeRFCLI._find_wandb_run(SimpleNamespace(resumed=[]), fit)  # type: ignore[arg-type]
    assert fit.trainer.logger is logger


def test_recipes_are_found_by_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"synthetic/instant_ngp", "blender/instant_ngp"} <= set(recipe_names())
    for name in recipe_names():
        assert Path(resolve_recipe(name)).is_file()
    assert resolve_arguments(["fit", "-c", "blender/instant_ngp"])[2].endswith("blender/instant_ngp.yaml")
    assert resolve_arguments(["fit", "--config=blender/instant_ngp"])[1].endswith("blender/instant_ngp.yaml")
    (tmp_path / "mine.yaml").write_text("trainer: {}\n")
    assert resolve_arguments(["fit", "-c", "mine.yaml"])[2] == "mine.yaml"


def test_an_unknown_recipe_names_the_known() -> None:
    with pytest.raises(SystemExit, match="blender/instant_ngp"):
        main(["fit", "-c", "blender/no_such"])


def test_advertisements_stay_out_behind_a_quiet_block_within_another(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addHandler(caplog.handler)
    with quiet():
        with quiet():
            pass
        logger.warning("💡 Tip: buy")
        logger.warning("a word of use")
    logger.removeHandler(caplog.handler)
    assert set(caplog.messages) == {"a word of use"}


def test_a_fit_without_a_seed_has_no_warning(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    with quiet():
        warnings.warn("No seed found, seed set to 0", stacklevel=1)
    assert not recwarn.list
