"""Training rays drawn on the host, for pictures that only a file holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from lightning_nerf import lightning_names
from lightning_nerf.ops.random import make_key
from lightning_nerf.types import RayBatch


class HostDrawn(NamedTuple):
    """A step's rays, as many as a step can take; on the device, :func:`limited` makes the first of them active."""

    batch: RayBatch


class HostRays:
    """Endless batches of rays, one for each step; a thread draws the next while the step runs.

    Args:
        start: the number of the first step, read at the beginning of each epoch: a resumed run continues its count.
        draw: the rays of a step, on the CPU.
        pin: hand out tensors in pinned memory, from where they are copied while the device works.

    >>> from lightning_nerf.data import SyntheticScene
    >>> from lightning_nerf.data.host_rays import HostRays
    >>> from lightning_nerf.ops.random import make_key
    >>> data = SyntheticScene(resolution=16, n_train=2, n_test=1, n_val=0)
    >>> steps = HostRays(lambda: 0, lambda step: data.draw(make_key(0, step=step), 8))
    >>> next(iter(steps)).batch.rgb.shape
    torch.Size([8, 3])
    """

    def __init__(self, start: Callable[[], int], draw: Callable[[int], RayBatch], pin: bool = False) -> None:
        self.start, self.draw, self.pin = start, draw, pin

    def __iter__(self) -> Iterator[HostDrawn]:
        step = self.start()
        with ThreadPoolExecutor(1) as pool:
            ready = pool.submit(self._drawn, step)
            while True:
                batch = ready.result()
                step += 1
                ready = pool.submit(self._drawn, step)
                yield HostDrawn(batch)

    def _drawn(self, step: int) -> RayBatch:
        batch = self.draw(step)
        return batch.map(Tensor.pin_memory) if self.pin else batch


def host_rays(trainer: L.Trainer, draw: Callable[[Tensor, int], RayBatch], start: Callable[[], int]) -> HostRays:
    """The batches of a fit: the rays that its module would draw in each step, as a function of its key and their number."""
    module: Any = trainer.lightning_module
    seed, repeated = int(module.key[0]), int(lightning_names.overfit_batches(trainer))

    def drawn(step: int) -> RayBatch:
        key = make_key(seed, trainer.global_rank, step % repeated if repeated else step)
        return draw(key, module.max_rays)

    return HostRays(start, drawn, pin=trainer.strategy.root_device.type == "cuda")


def limited(batch: RayBatch, n_rays: Tensor) -> RayBatch:
    """The batch with its first ``n_rays`` rays active, as :func:`~lightning_nerf.ops.draw_rays.draw_rays` would give it.

    Args:
        batch: R rays without a mask.
        n_rays: [] int32, on the batch's device, where it is read.
    """
    active = torch.arange(len(batch.rgb), device=batch.rgb.device) < n_rays
    rays = batch.rays._replace(near=batch.rays.near * active, far=batch.rays.far * active)
    alpha = None if batch.alpha is None else batch.alpha * active
    return batch._replace(rays=rays, rgb=batch.rgb * active[:, None], alpha=alpha, mask=active)
