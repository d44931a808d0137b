"""The interface of NerfAcc's estimators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_nerf.kept_dtypes import KeptDtypes


class AbstractEstimator(KeptDtypes):
    """Base class of what places samples along rays and learns from the field where to.

    Override :meth:`sampling` and :meth:`update_every_n_steps`.

    >>> class Uniform(nerfacc.estimators.base.AbstractEstimator):
    ...     def sampling(self, n_rays, n_samples):
    ...         t = torch.linspace(0, 1, n_samples + 1, device=self.device).expand(n_rays, -1)
    ...         return t[:, :-1], t[:, 1:]
    >>> Uniform().sampling(2, 4)[0].shape
    torch.Size([2, 4])
    """

    _dummy: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_dummy", torch.empty(0, dtype=torch.float32), persistent=False)

    def _settle(self) -> None:
        """Bring buffers that a user has assigned in another layout or dtype into the one that the kernels take."""
        for name, dtype in self.DTYPES.items():
            buffer = self._buffers[name]
            if buffer is not None and not (buffer.dtype is dtype and buffer.is_contiguous()):
                self._buffers[name] = buffer.to(dtype).contiguous()

    @property
    def device(self) -> torch.device:
        """The device that the estimator was moved to."""
        return self._dummy.device

    def sampling(self, *args: Any, **kwargs: Any) -> Any:
        """Place samples."""
        raise NotImplementedError

    def update_every_n_steps(self, *args: Any, **kwargs: Any) -> Any:
        """Learn from the field; called in each training step."""
        raise NotImplementedError
