"""Another loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_nerf import NeRFModule, RayBatch, Render


class LabelNeRF(NeRFModule):
    """:class:`NeRFModule` whose field learns ``extras["label"]`` too: red where red is seen, nothing where nothing is."""

    def __init__(self, label_weight: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.label_weight = label_weight

    def losses(self, render: Render, batch: RayBatch, kept: Tensor, background: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logs = super().losses(render, batch, kept, background)
        counts = (kept if batch.mask is None else kept & batch.mask).float()
        error = (render.extras["label"][:, 0] - red(batch.rgb, batch.alpha)).square()
        label_loss = (error * counts).sum() / counts.sum().clamp(min=1)
        return loss + self.label_weight * label_loss, {**logs, "label_loss": label_loss.detach()}


def red(rgb: Tensor, alpha: Tensor | None) -> Tensor:
    """1 where a pixel shows the red ball, else 0; of rgb [..., 3] with straight alpha [...]."""
    seen = rgb[..., 0] > rgb[..., 2]
    return seen.float() if alpha is None else seen * alpha
