"""A score of the extra channel."""

from __future__ import annotations

from typing import Any

import lightning as L

from nerf_plugin.loss import red


class LabelAccuracy(L.Callback):
    """Log ``test/label_accuracy``: the share of the pixels whose label is on the right side of ``threshold``."""

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        image = trainer.datamodule.scene("test").picture(int(batch[0])).to(pl_module.device) / 255  # type: ignore[attr-defined]
        right = (outputs["render"].extras["label"][..., 0] > self.threshold) == (red(image[..., :3], image[..., 3]) > 0.5)
        pl_module.log(
            "test/label_accuracy", right.float().mean(), on_step=False, on_epoch=True, batch_size=1, sync_dist=True
        )
