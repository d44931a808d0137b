"""Vanilla NeRF: one wide perceptron, on an occupancy grid or coarse to fine."""

from __future__ import annotations

from typing import Any

from lightning_nerf.estimators.base import Estimator
from lightning_nerf.estimators.occupancy_grid import OccupancyGrid
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.fields.vanilla import VanillaField
from lightning_nerf.modules.base import NeRFModule


class VanillaNeRF(NeRFModule):
    """NeRF (Mildenhall et al., ECCV 2020): :class:`NeRFModule` with its field as a default.

    ``field`` defaults to :class:`VanillaField`, ``estimator`` to :class:`OccupancyGrid`, as in NerfAcc; the paper's own is
    :class:`Hierarchical`. The other arguments are :class:`NeRFModule`'s.

    >>> from lightning_nerf import VanillaField, VanillaNeRF
    >>> module = VanillaNeRF(VanillaField(width=64, hidden_layers=3, skip=1), samples_per_step=2**12)
    >>> type(module.estimator).__name__
    'OccupancyGrid'
    """

    def __init__(self, field: RadianceField | None = None, estimator: Estimator | None = None, **kwargs: Any) -> None:
        super().__init__(
            VanillaField() if field is None else field,
            OccupancyGrid() if estimator is None else estimator,
            **kwargs,
        )
