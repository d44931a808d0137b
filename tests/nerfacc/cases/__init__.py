"""What is held against NerfAcc: rows for each of its names, run on both packages with the same inputs.

Inputs keep away from where NerfAcc is wrong or the two differ by design; docs/coming-from-nerfacc.md lists that.
"""

from __future__ import annotations

from tests.nerfacc.cases import along_rays, estimators, places
from tests.nerfacc.cases.case import Case

CASES = [
    *along_rays.scans(),
    *along_rays.packing(),
    *along_rays.from_alpha_or_density(),
    *along_rays.rendering(),
    *along_rays.accumulating(),
    along_rays.distortion(),
    *places.boxes(),
    *places.traversal(),
    *places.resampling(),
    *places.specs(),
    *places.cameras(),
    *estimators.estimators(),
    *estimators.proposal_losses(),
]

__all__ = ["CASES", "Case"]
