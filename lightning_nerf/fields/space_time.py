"""A field of space and time: hashed features of the position, modulated by hashed features of position and time."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from lightning_nerf.checks import REALS, BadArgument, check_instance, check_integer, check_number, check_tensor
from lightning_nerf.encodings import HashGrid, SphericalHarmonics
from lightning_nerf.fields.activations import leaky_sigmoid, truncated_exp
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.fields.mlp import mlp
from lightning_nerf.types import FieldOutput

X, Y, Z, T = range(4)
AXES = {
    "volumes": ((X, Y, T), (Y, Z, T), (X, Z, T)),
    "planes": ((X, T), (Y, T), (Z, T)),
}
_GEOMETRY, _WIDTH, _DEGREE = 16, 64, 4  # as in Instant-NGP: features beside density, hidden width, degree of harmonics


class SpaceTimeField(RadianceField):
    r"""Instant-NGP's field with features that vary in time: density and color at any time, without a canonical scene.

    .. math:: f(x, y, z, t) = f_0(x, y, z) \cdot f_1(x, y, t) \cdot f_2(y, z, t) \cdot f_3(x, z, t)

    level by level and feature by feature; each :math:`f_i` is a multiresolution hash grid. The tables of the three grids
    with a time axis start at 1, so a new field is the same at all times. Features -> perceptron -> ``16`` geometry
    features, the first of them the log density; these and the spherical harmonics of the direction -> perceptron -> rgb.
    Density is 0 outside the scene's box, unless the box has a contraction. Before the first time of the data the field is
    as at the first, after the last as at the last.

    >>> import torch
    >>> from lightning_nerf import SceneBox, SpaceTimeField
    >>> field = SpaceTimeField(n_levels=4, log2_table_size=12, max_resolution=64)
    >>> field.bind(SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]])))
    >>> field.bind_times(0.0, 1.0)
    >>> field(torch.zeros(5, 3), torch.ones(5, 3), times=torch.rand(5)).rgb.shape
    torch.Size([5, 3])

    Args:
        n_levels: resolution levels of each grid.
        n_features: features per level, one of 1, 2, 4, 8.
        log2_table_size: log2 of the largest number of entries per level of the grid in space.
        base_resolution: cells per side of the coarsest level, of all grids.
        max_resolution: cells per side of the finest level of the grid in space.
        time_axes: "volumes": grids over (x, y, t), (y, z, t) and (x, z, t); "planes": over (x, t), (y, t) and (z, t), at
            half the cost, for scenes with little motion.
        time_log2_table_size: log2 of the largest number of entries per level of the grids with a time axis.
        time_max_resolution: cells per side of their finest level, in space.
        time_cells: cells of that level between the first and the last time of the data; coarser levels have fewer in
            proportion. Take fewer than there are training times: with more, each time is learned by itself.
        density_bias: added to the log density, per third of the box's longest side; -1 starts training with a thin fog.
        fused: under CUDA autocast, run each perceptron in one kernel where there is one; False: layer by layer.

    Differentiable in all parameters and once in positions and times.

    Source: the product of features of space and of space with time is that of Fridovich-Keil, Meanti, Warburg, Recht,
    Kanazawa, "K-Planes", CVPR 2023, equation 2; hashed grids over three of the four axes are those of Xu, Fan, Yang, Xu,
    "Grid4D", NeurIPS 2024.
    """

    wants: Collection[str] = ("times",)
    free_arguments = ("fused",)
    ends_at_box = True

    def __init__(
        self,
        n_levels: int = 8,
        n_features: int = 4,
        log2_table_size: int = 19,
        base_resolution: int = 16,
        max_resolution: int = 768,
        time_axes: str = "volumes",
        time_log2_table_size: int = 17,
        time_max_resolution: int = 256,
        time_cells: float = 32.0,
        density_bias: float = -1.0,
        fused: bool = True,
    ) -> None:
        super().__init__()
        check_instance("time_axes", time_axes, str)
        if time_axes not in AXES:
            raise BadArgument(f"time_axes: expected one of {', '.join(AXES)}, got {time_axes!r}")
        check_integer("base_resolution", base_resolution, 2, 2**20)
        check_integer("time_max_resolution", time_max_resolution, base_resolution, 2**20)
        check_number("time_cells", time_cells, f"(0, {time_max_resolution}]")
        check_number("density_bias", density_bias, "(-inf, inf)")
        check_instance("fused", fused, bool)
        self.time_axes = time_axes
        self.time_scale = time_cells / time_max_resolution  # of the unit cube's side, which all axes share
        self.density_bias = density_bias
        self.space = HashGrid(3, n_levels, n_features, log2_table_size, base_resolution, max_resolution)
        check_integer("time_log2_table_size", time_log2_table_size, 3, 28)
        try:
            grids = [
                HashGrid(len(axes), n_levels, n_features, time_log2_table_size, base_resolution, time_max_resolution)
                for axes in AXES[time_axes]
            ]
        except BadArgument as error:  # in the words of a grid that knows no time
            raise BadArgument(f"time_log2_table_size, time_max_resolution: {error}") from error
        for grid in grids:
            nn.init.ones_(grid.table)
        self.space_time = nn.ModuleList(grids)
        self.direction_encoding = SphericalHarmonics(_DEGREE)
        self.density_net = mlp(self.space.n_outputs, _GEOMETRY, width=_WIDTH, hidden_layers=1, fused=fused)
        self.color_net = mlp(_GEOMETRY + _DEGREE**2, 3, width=_WIDTH, hidden_layers=2, fused=fused)
        self.float()  # whatever torch's default is: kernels know no other

    def encoded(self, positions: Tensor, times: Tensor) -> Tensor:
        """Features [N, n_levels * n_features] of positions [N, 3] in world space at times [N]."""
        return self._encoded(self.unit_positions(positions), times)

    def _encoded(self, unit: Tensor, times: Tensor) -> Tensor:
        check_tensor("times", times, (len(unit),), REALS)
        moments = self.unit_times(times).clamp(0, 1).to(unit.dtype)  # beyond, no training view has written to the grids
        place = torch.cat([unit, (self.time_scale * moments)[:, None]], 1)
        features = self.space(unit)
        for axes, grid in zip(AXES[self.time_axes], self.space_time, strict=True):
            features = features * grid(place[:, list(axes)])
        return features

    def geometry(self, positions: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Density [N] and all outputs [N, 16] of the density perceptron."""
        unit = self.unit_positions(positions)
        inside = (unit.clamp(0, 1) == unit).all(-1)
        features = self.density_net(self._encoded(unit, times))
        return truncated_exp(features[:, 0] + self.density_bias) / self.unit_length * inside, features

    def density(self, positions: Tensor, *, times: Tensor) -> Tensor:  # type: ignore[override]
        """See :meth:`RadianceField.density`."""
        return self.geometry(positions, times)[0]

    def forward(self, positions: Tensor, directions: Tensor, *, times: Tensor) -> FieldOutput:  # type: ignore[override]
        """See :meth:`RadianceField.forward`."""
        density, features = self.geometry(positions, times)
        encoded = self.direction_encoding(directions)
        return FieldOutput(density, leaky_sigmoid(self.color_net(torch.cat([encoded.to(features.dtype), features], -1))))
