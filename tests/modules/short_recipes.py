"""Recipes shortened for a CPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lightning_nerf.cli import NeRFCLI, main


def psnr_of_fit(recipe: str, short: str, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """PSNR over the test views at the end of a fit of a recipe, in a folder, with a YAML text laid over it."""
    cli = fit_shortened(recipe, short, folder, [f"--data.cache_dir={cache}"], monkeypatch)
    return float(cli.trainer.callback_metrics["test/psnr"])


def fit_shortened(recipe: str, short: str, folder: Path, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> NeRFCLI:
    """The command line's parts after such a fit, with further words."""
    monkeypatch.chdir(folder)
    Path("short.yaml").write_text(short)
    monkeypatch.setattr(sys, "argv", ["lightning-nerf", "fit", "-c", recipe, "-c", "short.yaml", *words])
    return main()
