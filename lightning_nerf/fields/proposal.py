"""A small field that says where light may come from: density alone."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.capabilities import has, states
from lightning_nerf.checks import check_instance, check_integer, check_number
from lightning_nerf.encodings import HashGrid
from lightning_nerf.fields.activations import truncated_exp
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.fields.mlp import mlp
from lightning_nerf.ops.sample_points import CONTRACTIONS_OF_POINTS, sample_points
from lightning_nerf.scene_box import BALLS
from lightning_nerf.types import Evaluated, FieldOutput, PackedSamples, Rays


class ProposalField(RadianceField):
    """Density from a small hash grid and a small perceptron; no color.

    An estimator asks it where samples are worth their cost, see :class:`~lightning_nerf.Proposal`, and a loss trains it by
    what the module's field finds there, see :class:`~lightning_nerf.Interlevel`. Density is 0 outside the scene's box,
    unless the box has a contraction.

    >>> import torch
    >>> from lightning_nerf import ProposalField, SceneBox
    >>> field = ProposalField(n_levels=2, log2_table_size=10, max_resolution=32)
    >>> field.bind(SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), "l2"))
    >>> field.density(torch.tensor([[0.0, 0, 0], [9, 9, 9]])).shape
    torch.Size([2])

    Args:
        n_levels: resolution levels of the hash grid.
        n_features: features per level, one of 1, 2, 4, 8.
        log2_table_size: log2 of the largest number of entries per level.
        base_resolution: cells per side of the coarsest level.
        max_resolution: cells per side of the finest level; 128 and 256 for two rounds.
        width: of the perceptron's hidden layer, 1 to 4096.
        density_bias: added to the log density, per third of the box's longest side.
        fused: under CUDA autocast, run the perceptron in one kernel where there is one; False: layer by layer.
        antialias: fade levels of the grid that are finer than a pixel is at the sample, see :class:`HashGrid`; rays need a
            footprint, which those of data modules and cameras have.

    Differentiable in all parameters and once in positions.

    Source: the sizes are those of nerfacto, Tancik et al., "Nerfstudio", SIGGRAPH 2023.
    """

    free_arguments = ("fused",)
    ends_at_box = True

    def __init__(
        self,
        n_levels: int = 5,
        n_features: int = 2,
        log2_table_size: int = 17,
        base_resolution: int = 16,
        max_resolution: int = 128,
        width: int = 16,
        density_bias: float = -1.0,
        fused: bool = True,
        antialias: bool = False,
    ) -> None:
        check_instance("antialias", antialias, bool)
        if antialias:
            self.wants = (*self.wants, "footprints")
        super().__init__()
        check_integer("width", width, 1, 4096)
        check_number("density_bias", density_bias, "(-inf, inf)")
        self.density_bias = density_bias
        self.position_encoding = HashGrid(3, n_levels, n_features, log2_table_size, base_resolution, max_resolution)
        self.density_net = mlp(self.position_encoding.n_outputs, 1, width=width, hidden_layers=1, fused=fused)
        self.float()  # whatever torch's default is: kernels know no other

    @states("by_unit_positions")
    def density(self, positions: Tensor, footprints: Tensor | None = None) -> Tensor:
        """See :meth:`RadianceField.density`."""
        widths = () if footprints is None else (self.unit_sigmas(positions, footprints),)
        return self._density(self.unit_positions(positions), *widths)

    def _density(self, unit: Tensor, *widths: Tensor) -> Tensor:
        logits = self.density_net(self.position_encoding(unit, *widths))[:, 0]
        density = truncated_exp(logits + self.density_bias) / self.unit_length
        if self.scene_box.contraction in BALLS:  # all of space is in the cube
            return density
        return density * (unit.clamp(0, 1) == unit).all(-1)

    @states("by_unit_positions")
    def forward(self, positions: Tensor, directions: Tensor, footprints: Tensor | None = None) -> FieldOutput:
        """See :meth:`RadianceField.forward`; all is black."""
        return _black(self.density(positions, footprints))

    def at_samples(self, rays: Rays, samples: PackedSamples, evaluated: Evaluated | None = None) -> FieldOutput:
        """See :meth:`RadianceField.at_samples`; the way to the unit cube is a part of placing the points."""
        contraction = self.scene_box.contraction
        plain = not self.wants and all(has(method, "by_unit_positions") for method in (self.density, self.forward))
        if not plain or contraction not in CONTRACTIONS_OF_POINTS:
            return super().at_samples(rays, samples, evaluated)
        return _black(self._density(sample_points(rays, samples, to_unit=self.affine, contraction=contraction)[0]))


def _black(density: Tensor) -> FieldOutput:
    return FieldOutput(density, torch.zeros((), device=density.device).expand(len(density), 3))
