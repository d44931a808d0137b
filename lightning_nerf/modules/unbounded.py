"""Scenes without a border: proposals or nested grids in contracted space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_nerf.estimators.base import Estimator
from lightning_nerf.estimators.proposal import Proposal
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.fields.instant_ngp import InstantNGPField
from lightning_nerf.fields.proposal import ProposalField
from lightning_nerf.losses.base import Loss
from lightning_nerf.losses.distortion import Distortion
from lightning_nerf.losses.interlevel import Interlevel
from lightning_nerf.losses.photometric import Photometric
from lightning_nerf.modules.base import NeRFModule


class UnboundedNeRF(NeRFModule):
    """Captures of places (Barron et al., "Mip-NeRF 360", CVPR 2022): :class:`NeRFModule` with its parts as defaults.

    ``field`` defaults to :class:`InstantNGPField` with cells for a space that is four times as wide as the box,
    ``estimator`` to :class:`Proposal` with two fields, even in 1 / t; :class:`OccupancyGrid` with several levels is the
    other way. ``losses`` default to :class:`Photometric`, :class:`Distortion` and, where the estimator makes rounds,
    :class:`Interlevel`. Give the data a contraction, ``"l2"`` or ``"linf"``: without it nothing outside of the box is
    seen. The other arguments are :class:`NeRFModule`'s.

    >>> from lightning_nerf import UnboundedNeRF
    >>> module = UnboundedNeRF(samples_per_step=2**12, max_rays=64, initial_rays=64)
    >>> [loss.name for loss in module.losses]
    ['photometric', 'distortion', 'interlevel']
    """

    def __init__(
        self,
        field: RadianceField | None = None,
        estimator: Estimator | None = None,
        losses: Sequence[Loss] | None = None,
        **kwargs: Any,
    ) -> None:
        if estimator is None:
            estimator = Proposal([ProposalField(max_resolution=n) for n in (128, 256)], spacing="disparity")
        if losses is None:
            losses = [Photometric(), Distortion(weight=0.002), *([Interlevel()] if estimator.n_rounds > 0 else [])]
        super().__init__(
            InstantNGPField(max_resolution=8192) if field is None else field, estimator, losses=losses, **kwargs
        )
