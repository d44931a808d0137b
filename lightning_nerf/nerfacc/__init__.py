"""NerfAcc's interface (0.5.3) over this project's ops, on a CPU too: replace ``import nerfacc``."""

from lightning_nerf.nerfacc.data_specs import RayIntervals, RaySamples
from lightning_nerf.nerfacc.pack import pack_info
from lightning_nerf.nerfacc.pdf import importance_sampling, searchsorted
from lightning_nerf.nerfacc.scan import exclusive_prod, exclusive_sum, inclusive_prod, inclusive_sum

__all__ = [
    "RayIntervals",
    "RaySamples",
    "exclusive_prod",
    "exclusive_sum",
    "importance_sampling",
    "inclusive_prod",
    "inclusive_sum",
    "pack_info",
    "searchsorted",
]
