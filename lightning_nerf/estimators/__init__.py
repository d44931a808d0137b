"""Where to place samples along rays. Estimators know nothing of fields: they are handed a query for densities."""

from lightning_nerf.estimators.base import Estimator
from lightning_nerf.estimators.hierarchical import Hierarchical
from lightning_nerf.estimators.occupancy_grid import OccupancyGrid
from lightning_nerf.estimators.proposal import Proposal
from lightning_nerf.estimators.query import DensityFn, as_query
from lightning_nerf.estimators.uniform import Uniform

__all__ = ["DensityFn", "Estimator", "Hierarchical", "OccupancyGrid", "Proposal", "Uniform", "as_query"]
