"""NerfAcc's estimator on fVDB grids. It is not here: importing works, as in NerfAcc, and using it is an error."""

from __future__ import annotations

from typing import NoReturn

from lightning_nerf.nerfacc.estimators.base import AbstractEstimator

WHY = (
    "lightning_nerf.nerfacc has no VDBEstimator and no traverse_vdbs: fVDB grids are out of its scope. "
    "OccGridEstimator with several levels covers large scenes."
)


class MissingVDB(ImportError, AssertionError):  # noqa: N818 (named like those in checks.py)
    """What fVDB grids would be needed for. NerfAcc without fVDB raises an AssertionError there."""


class VDBEstimator(AbstractEstimator):
    """Stands for NerfAcc's class, so that programs which name it can be imported; constructing it raises.

    >>> nerfacc.estimators.vdb.VDBEstimator(None)
    Traceback (most recent call last):
    ...
    lightning_nerf.nerfacc.estimators.vdb.MissingVDB: lightning_nerf.nerfacc has no VDBEstimator and no traverse_vdbs: ...
    """

    def __init__(self, *_: object, **__: object) -> None:
        raise MissingVDB(WHY)


def traverse_vdbs(*_: object, **__: object) -> NoReturn:
    """Raise :class:`MissingVDB`; see :class:`VDBEstimator`."""
    raise MissingVDB(WHY)
