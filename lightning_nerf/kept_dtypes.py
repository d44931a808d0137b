"""Modules whose buffers keep their dtype, because kernels know no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn


class KeptDtypes(nn.Module):
    """A module some of whose buffers keep their dtype under ``.double()``, ``.half()`` and ``.to(dtype)``."""

    DTYPES: ClassVar[dict[str, torch.dtype]] = {}
    """Names of these buffers, and their dtypes."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeptDtypes:
        before = {name: self._buffers[name] for name in self.DTYPES}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype is not buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)  # from the original, which was not rounded
        return self
