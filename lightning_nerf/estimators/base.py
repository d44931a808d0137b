"""The interface of an estimator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from lightning_nerf.types import PackedSamples, Rays, SceneBox

DensityFn = Callable[..., Tensor]
"""``density_fn(positions [N, 3])``, or ``density_fn(positions, times [N])`` where rays have times, gives densities [N]."""

RayDensityFn = Callable[[Rays, PackedSamples, float], tuple[Tensor, Tensor | None]]
"""``ray_density_fn(rays, samples [N], early_stop_eps)`` gives densities [N] and features [N, k] for later use, or None.

Where a ray has less than ``early_stop_eps`` of its light left, both may be anything finite."""


class Estimator(nn.Module, ABC):
    """Decides where along its rays a field is evaluated.

    An estimator never sees a field, only a density function of plain tensors: a field's ``density`` method will do, and so
    will any other callable.
    """

    needs_update: bool = False
    """Whether :meth:`update` must be called during training."""

    @abstractmethod
    def bind(self, scene_box: SceneBox) -> None:
        """Learn where the scene is; called before training. Saved buffers are written in place."""

    @abstractmethod
    def sampling(
        self,
        rays: Rays,
        density_fn: DensityFn | None = None,
        *,
        key: Tensor | None = None,
        capacity: int | None = None,
        march_capacity: int | None = None,
        ray_density_fn: RayDensityFn | None = None,
    ) -> PackedSamples:
        """Place samples on R rays. No gradient flows.

        Args:
            rays: where; inactive rays get no samples.
            density_fn: densities decide which samples are worth evaluating again; None: keep all.
            key: [3] int64 [seed, rank, step]: samples are jittered by a function of it; None: no jitter.
            capacity: length of the returned samples; the true count stays on the device, whole rays that do not fit are
                dropped (``kept``). None: the exact count, read by the host.
            march_capacity: the same for the candidates before ``density_fn`` has its say.
            ray_density_fn: where an estimator wants densities of packed samples, it may ask this function in place of
                ``density_fn``, which goes with it; features that it returns travel in ``PackedSamples.evaluated``.
        """

    def thresholds(self) -> tuple[float, Tensor] | None:
        """(transmittance, opacity) below which :meth:`sampling` drops samples; None: it chooses in another way."""
        return None

    def update(self, density_fn: DensityFn, *, step: int, key: Tensor) -> None:
        """Learn from the field as it is at training step ``step``; in place, no gradient, key as in :meth:`sampling`."""
