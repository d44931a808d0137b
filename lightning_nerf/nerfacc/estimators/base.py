"""The interface of NerfAcc's estimators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class AbstractEstimator(nn.Module):
    """Base class of what places samples along rays and learns from the field where to.

    Override :meth:`sampling` and :meth:`update_every_n_steps`.

    >>> class Uniform(nerfacc.estimators.base.AbstractEstimator):
    ...     def sampling(self, n_rays, n_samples):
    ...         t = torch.linspace(0, 1, n_samples + 1, device=self.device).expand(n_rays, -1)
    ...         return t[:, :-1], t[:, 1:]
    >>> Uniform().sampling(2, 4)[0].shape
    torch.Size([2, 4])
    """

    DTYPES: ClassVar[dict[str, torch.dtype]] = {}
    """Buffers that keep their dtype under ``.double()``, ``.half()`` and ``.to(dtype)``: the kernels know no other."""

    _dummy: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_dummy", torch.empty(0, dtype=torch.float32), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AbstractEstimator:
        before = {name: self._buffers[name] for name in self.DTYPES}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype is not buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)  # from the original, which was not rounded
        return self

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
