"""Instant-NGP: a hash-grid field on an occupancy grid."""

from __future__ import annotations

from typing import Any

from lightning_nerf.estimators.base import Estimator
from lightning_nerf.estimators.occupancy_grid import OccupancyGrid
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.fields.instant_ngp import InstantNGPField
from lightning_nerf.modules.base import NeRFModule


class InstantNGP(NeRFModule):
    """Instant-NGP (Mueller et al., SIGGRAPH 2022): :class:`NeRFModule` with its field and estimator as defaults.

    ``field`` defaults to :class:`InstantNGPField`, ``estimator`` to :class:`OccupancyGrid`; the other arguments are
    :class:`NeRFModule`'s.

    >>> from lightning_nerf import InstantNGP, InstantNGPField
    >>> module = InstantNGP(InstantNGPField(n_levels=4, log2_table_size=12), samples_per_step=2**14)
    >>> type(module.estimator).__name__
    'OccupancyGrid'
    """

    def __init__(self, field: RadianceField | None = None, estimator: Estimator | None = None, **kwargs: Any) -> None:
        super().__init__(
            InstantNGPField() if field is None else field,
            OccupancyGrid() if estimator is None else estimator,
            **kwargs,
        )
