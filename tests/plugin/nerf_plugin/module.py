"""A method of its own: defaults and wiring."""

from __future__ import annotations

from typing import Any

from lightning_nerf import NeRFModule, Photometric
from nerf_plugin.loss import LabelLoss


class LabelNeRF(NeRFModule):
    """:class:`NeRFModule` whose field learns ``extras["label"]`` too: red where red is seen, nothing where nothing is."""

    def __init__(self, label_weight: float = 0.1, **kwargs: Any) -> None:
        super().__init__(losses=[Photometric(), LabelLoss(label_weight)], **kwargs)
