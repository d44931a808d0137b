"""Recipes shortened for a CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightning_nerf.cli import main


def psnr_of_fit(recipe: str, short: str, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """PSNR over the test views at the end of a fit of a recipe, in a folder, with a YAML text laid over it."""
    monkeypatch.chdir(folder)
    Path("short.yaml").write_text(short)
    words = ["fit", "-c", recipe, "-c", "short.yaml", f"--data.cache_dir={cache}"]
    monkeypatch.setattr(sys, "argv", ["lightning-nerf", *words])
    return float(main().trainer.callback_metrics["test/psnr"])
