"""Where to place samples along rays. Estimators know nothing of fields: they are handed a density function."""

from lightning_nerf.estimators.base import Estimator
from lightning_nerf.estimators.occupancy_grid import OccupancyGrid

__all__ = ["Estimator", "OccupancyGrid"]
