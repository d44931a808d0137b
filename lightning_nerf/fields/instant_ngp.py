"""Instant-NGP's field: a multiresolution hash grid and two small perceptrons."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.encodings import HashGrid, SphericalHarmonics
from lightning_nerf.fields.activations import truncated_exp
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.fields.mlp import mlp
from lightning_nerf.types import FieldOutput


class InstantNGPField(RadianceField):
    """Density from hashed features of the position; colour from that network's features and the direction.

    Position -> hash grid -> perceptron -> ``geometry_features``, the first of them the log density; these and the spherical
    harmonics of the direction -> perceptron -> sigmoid -> rgb. Density is 0 outside the scene's box.

    Args:
        n_levels: resolution levels of the hash grid.
        n_features: features per level, one of 1, 2, 4, 8.
        log2_table_size: log2 of the largest number of entries per level.
        base_resolution: cells per side of the coarsest level.
        max_resolution: cells per side of the finest level.
        width: hidden width of both perceptrons.
        geometry_features: outputs of the density perceptron.
        density_layers: hidden layers of the density perceptron.
        color_layers: hidden layers of the colour perceptron.
        sh_degree: degree of the spherical harmonics, ``sh_degree**2`` coefficients.
        density_bias: added to the log density; -1 starts training with a thin fog.

    Differentiable in all parameters; in positions and directions where the ops are.

    Source: Mueller, Evans, Schied, Keller, "Instant neural graphics primitives with a multiresolution hash encoding",
    SIGGRAPH 2022, section 5.4.
    """

    def __init__(
        self,
        n_levels: int = 16,
        n_features: int = 2,
        log2_table_size: int = 19,
        base_resolution: int = 16,
        max_resolution: int = 2048,
        width: int = 64,
        geometry_features: int = 16,
        density_layers: int = 1,
        color_layers: int = 2,
        sh_degree: int = 4,
        density_bias: float = -1.0,
    ) -> None:
        super().__init__()
        if geometry_features < 1:
            raise ValueError(f"geometry_features: expected >= 1, got {geometry_features}")
        self.density_bias = density_bias
        self.position_encoding = HashGrid(
            n_dims=3,
            n_levels=n_levels,
            n_features=n_features,
            log2_table_size=log2_table_size,
            base_resolution=base_resolution,
            max_resolution=max_resolution,
        )
        self.direction_encoding = SphericalHarmonics(sh_degree)
        self.density_net = mlp(
            self.position_encoding.n_outputs, geometry_features, width=width, hidden_layers=density_layers
        )
        self.color_net = mlp(
            geometry_features + self.direction_encoding.n_outputs, 3, width=width, hidden_layers=color_layers
        )

    def _geometry(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Density [N] and all outputs [N, geometry_features] of the density perceptron."""
        unit = self.unit_positions(positions)
        inside = (unit.clamp(0, 1) == unit).all(-1)
        features = self.density_net(self.position_encoding(unit))
        return truncated_exp(features[:, 0] + self.density_bias) * inside, features

    def density(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        """See :meth:`RadianceField.density`; ``times`` are ignored."""
        return self._geometry(positions)[0]

    def forward(self, positions: Tensor, directions: Tensor, times: Tensor | None = None) -> FieldOutput:
        """See :meth:`RadianceField.forward`; ``times`` are ignored."""
        density, features = self._geometry(positions)
        encoded = self.direction_encoding(directions)
        rgb = self.color_net(torch.cat([encoded.to(features.dtype), features], dim=-1)).float().sigmoid()
        return FieldOutput(density, rgb)
