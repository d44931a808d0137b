"""Offline fits that Weights & Biases tracks, by the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from lightning_nerf.cli import main


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Nothing leaves this machine, and nothing is written outside of the tests' folders."""
    wandb = pytest.importorskip("wandb")
    with pytest.MonkeyPatch.context() as patch:
        # Lightning sets WANDB_MODE where a logger is offline; this undoes it.
        patch.setenv("WANDB_MODE", "offline")
        patch.delenv("WANDB_RUN_ID", raising=False)
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        wandb.teardown()  # what a former test has set up for the process
        yield
        wandb.teardown()


def tracked_fit(patch: pytest.MonkeyPatch, recipe: str, *arguments: str) -> str:
    """Fit by a recipe, ``tiny.yaml`` and ``overlays/wandb`` in the current folder; the run's id."""
    import wandb

    configs = ["-c", recipe, "-c", "tiny.yaml", "-c", "overlays/wandb"]
    patch.setattr(sys, "argv", ["lightning-nerf", "fit", *configs, *arguments])
    run = main().trainer.logger.version  # type: ignore[union-attr]
    wandb.finish()
    return str(run)
