"""Device scalars on the host, without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class HostCopy:
    """One copy at a time of some device scalars to pinned host memory, queued behind the step; on a CPU it is instant."""

    def __init__(self) -> None:
        self._host: Tensor | None = None
        self._event: torch.cuda.Event | None = None
        self._pending = False

    @property
    def is_pending(self) -> bool:
        """Whether a copy was started and its values were not taken yet."""
        return self._pending

    @torch.no_grad()
    def start(self, scalars: Sequence[Tensor]) -> None:
        """Copy 0-d tensors as float32."""
        values = torch.stack([scalar.detach().float() for scalar in scalars])
        if values.is_cuda:
            if self._host is None or len(self._host) != len(values):
                self._host = torch.empty(len(values), dtype=values.dtype, pin_memory=True)
            self._event = torch.cuda.Event() if self._event is None else self._event
            self._host.copy_(values, non_blocking=True)
            self._event.record()
        else:
            self._host = values
        self._pending = True

    def take(self, wait: bool = False) -> list[float] | None:
        """The values if they have arrived, else None; with ``wait`` the device is waited for."""
        if not self._pending or self._host is None:
            return None
        if self._event is not None:
            if wait:
                self._event.synchronize()
            elif not self._event.query():
                return None
        self._pending = False
        return self._host.tolist()
