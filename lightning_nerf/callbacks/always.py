"""The callbacks that every module brings, whatever its parts are."""

from __future__ import annotations

import lightning as L

from lightning_nerf.callbacks.resume import CheckedResume
from lightning_nerf.callbacks.wandb_run import WandbRun

ALWAYS: tuple[type[L.Callback], ...] = (CheckedResume, WandbRun)
