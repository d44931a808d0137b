"""The progress bar."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.telemetry import Telemetry
from lightning_nerf.checks import check_integer


class NeRFProgressBar(TQDMProgressBar):
    """Lightning's bar with training PSNR, rays/s, samples/s and occupied share, read through :class:`Telemetry`.

    Args:
        refresh_rate: steps between two redraws; 0 disables the bar.
    """

    def __init__(self, refresh_rate: int = 50) -> None:
        check_integer("refresh_rate", refresh_rate, 0)
        super().__init__(refresh_rate=refresh_rate)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        telemetry = next((c for c in lightning_names.callbacks(trainer) if isinstance(c, Telemetry)), None)
        latest = {} if telemetry is None else telemetry.latest
        shown = {}
        if "train/psnr" in latest:
            shown["psnr"] = f"{latest['train/psnr']:.2f}"
        for key, name in [("rays/s", "train/rays_per_second"), ("samples/s", "train/samples_per_second")]:
            if name in latest:
                shown[key] = f"{latest[name]:.3g}"
        if "train/occupied" in latest:
            shown["occupied"] = f"{latest['train/occupied']:.1%}"
        return {**shown, **items}
