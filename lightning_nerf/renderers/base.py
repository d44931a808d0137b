"""The interface of a renderer."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lightning_nerf.arguments import Recorded
from lightning_nerf.types import FieldOutput, PackedSamples, Render


class Renderer(Recorded, nn.Module, ABC):
    """A function from a field's output at packed samples to per-ray values, always fully shaped.

    >>> from lightning_nerf import Renderer, VolumeRenderer
    >>> isinstance(VolumeRenderer(), Renderer), VolumeRenderer().is_plain
    (True, True)
    """

    @property
    def is_plain(self) -> bool:
        """Whether this is volume rendering of all samples and nothing else, which a field's frame kernel may do instead."""
        return False

    @abstractmethod
    def forward(
        self,
        output: FieldOutput,
        samples: PackedSamples,
        *,
        background: Tensor | None = None,
        return_weights: bool = False,
    ) -> Render:
        """Render the R rays of ``samples`` from ``output`` at their N samples.

        Args:
            output: the field at the samples; its tail may hold anything.
            samples: which sample belongs to which ray, and where on it.
            background: [3] or [R, 3], what shines through; None is black. A ray without samples returns it exactly.
            return_weights: also return the weight of each sample [N].
        """
