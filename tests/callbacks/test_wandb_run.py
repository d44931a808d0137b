from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import WandbLogger

from lightning_nerf.callbacks.wandb_run import WandbRun, wandb_run_id
from tests.scenes import tiny_module, tiny_scene, trainer


class Offline(WandbLogger):
    """Knows its run's id and nothing else; without an id it has not begun one."""

    def __init__(self, run: str | None) -> None:
        self.run = run

    @property
    def version(self) -> str | None:
        return self.run


@pytest.mark.parametrize(("runs", "saved"), [([], None), ([None], None), (["a1"], "a1"), (["a1", "b2"], "a1")])
def test_the_first_run_is_saved(runs: list[str | None], saved: str | None, tmp_path: Path) -> None:
    fit = trainer(tmp_path)
    fit.loggers = [Offline(run) for run in runs]
    checkpoint: dict[str, Any] = {}
    WandbRun().on_save_checkpoint(fit, tiny_module(), checkpoint)
    assert checkpoint.get("wandb_run_id") == saved


def test_every_module_brings_it_and_says_nothing_without_a_run(tmp_path: Path, scene_cache: Path) -> None:
    path = tmp_path / "it.ckpt"
    for steps in (1, 2):  # a warning is an error in tests
        fit = trainer(tmp_path, max_steps=steps)
        fit.fit(tiny_module(), tiny_scene(scene_cache), ckpt_path=path if path.is_file() else None)
        assert any(isinstance(c, WandbRun) for c in fit.callbacks)  # type: ignore[attr-defined]
        fit.save_checkpoint(path)
        assert "wandb_run_id" not in torch.load(path, weights_only=True)
        content = torch.load(path, weights_only=True)
        torch.save({**content, "wandb_run_id": "a1"}, path)


@pytest.mark.parametrize(
    "run", ["../../x", "/x", "a/b", "", ".", "..", "a\0", "a\nb", 5, None, ["a"], "x" * 129, "local://x"]
)
def test_an_id_that_would_lead_to_another_folder_is_none(run: Any, tmp_path: Path) -> None:
    """Files of a run go to ``save_dir/project/id``."""
    torch.save({"wandb_run_id": run}, tmp_path / "it.ckpt")
    assert wandb_run_id(tmp_path / "it.ckpt") is None


@pytest.mark.parametrize("run", ["k3x9a1b2", "my-run_1.2", "x" * 128])
def test_an_id_as_users_give_them(run: str, tmp_path: Path) -> None:
    torch.save({"wandb_run_id": run}, tmp_path / "it.ckpt")
    assert wandb_run_id(tmp_path / "it.ckpt") == run
