"""NerfAcc's interface on this project's kernels: ``import lightning_nerf.nerfacc as nerfacc``.

Names, arguments, shapes and dtypes are those of NerfAcc 0.5.3; it runs on CPU and CUDA. A wrong argument raises
:class:`~lightning_nerf.nerfacc.errors.NerfAccArgument`, which is a ValueError and, as NerfAcc's own, an AssertionError.
"""

from __future__ import annotations

from typing import NoReturn

from lightning_nerf.nerfacc import cameras as cameras  # a submodule that no name here comes from
from lightning_nerf.nerfacc.data_specs import RayIntervals, RaySamples
from lightning_nerf.nerfacc.errors import NerfAccArgument as NerfAccArgument  # not of NerfAcc, so not in __all__
from lightning_nerf.nerfacc.estimators import vdb
from lightning_nerf.nerfacc.estimators.occ_grid import OccGridEstimator
from lightning_nerf.nerfacc.estimators.prop_net import PropNetEstimator
from lightning_nerf.nerfacc.grid import ray_aabb_intersect, traverse_grids
from lightning_nerf.nerfacc.losses import distortion
from lightning_nerf.nerfacc.pack import pack_info
from lightning_nerf.nerfacc.pdf import importance_sampling, searchsorted
from lightning_nerf.nerfacc.scan import exclusive_prod, exclusive_sum, inclusive_prod, inclusive_sum
from lightning_nerf.nerfacc.version import __version__
from lightning_nerf.nerfacc.volrend import (
    accumulate_along_rays,
    render_transmittance_from_alpha,
    render_transmittance_from_density,
    render_visibility_from_alpha,
    render_visibility_from_density,
    render_weight_from_alpha,
    render_weight_from_density,
    rendering,
)

__all__ = [
    "OccGridEstimator",
    "PropNetEstimator",
    "RayIntervals",
    "RaySamples",
    "__version__",
    "accumulate_along_rays",
    "distortion",
    "exclusive_prod",
    "exclusive_sum",
    "importance_sampling",
    "inclusive_prod",
    "inclusive_sum",
    "pack_info",
    "ray_aabb_intersect",
    "render_transmittance_from_alpha",
    "render_transmittance_from_density",
    "render_visibility_from_alpha",
    "render_visibility_from_density",
    "render_weight_from_alpha",
    "render_weight_from_density",
    "rendering",
    "searchsorted",
    "traverse_grids",
]


def __getattr__(name: str) -> NoReturn:
    # NerfAcc 0.5.3 has neither, so hasattr() says no; its main branch has both, in estimators.vdb too.
    why = f" ({vdb.WHY})" if name in ("VDBEstimator", "traverse_vdbs") else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{why}")
