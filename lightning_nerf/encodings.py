"""Encodings of positions and directions, as modules. Each maps [N, D] to [N, ``n_outputs``]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_nerf.checks import BadArgument, check_instance, check_integer, check_number, check_tensor
from lightning_nerf.ops.frequency import MAX_FREQUENCIES, frequency
from lightning_nerf.ops.hash_grid import hash_grid
from lightning_nerf.ops.memory import check_fits
from lightning_nerf.ops.spherical_harmonics import MAX_DEGREE, spherical_harmonics
from lightning_nerf.optim.mirror import HalfMirror

MAX_LEVELS = 64


class HashGrid(nn.Module):
    """Multiresolution hash encoding with a learned table, see :func:`lightning_nerf.ops.hash_grid.hash_grid`.

    The resolutions grow geometrically: ``floor(base_resolution * b^l)``, ``b = (max / base)^(1 / (n_levels - 1))``. A
    level whose vertices fit in ``2^log2_table_size`` rows stores them all (rounded up to 8 rows), any other hashes into as
    many.

    >>> import torch
    >>> from lightning_nerf import HashGrid
    >>> HashGrid(n_levels=4, n_features=2, log2_table_size=10)(torch.rand(7, 3)).shape
    torch.Size([7, 8])

    Args:
        n_dims: 2, 3 or 4.
        n_levels: 1 to 64; a single level needs ``base_resolution == max_resolution``.
        n_features: per level; 1, 2, 4 or 8.
        log2_table_size: 3 to 28, rows of the largest level.
        base_resolution: of the coarsest level, at least 2.
        max_resolution: of the finest level, at most 2^20.

    ``table`` [T, n_features] is a float32 parameter, uniform in [-1e-4, 1e-4] at first; ``levels`` [n_levels, 3] int32
    holds each level's (resolution, offset, size). Positions are float32 in [0, 1], also under autocast. Under CUDA autocast
    the features are read from :meth:`working_table` and come in autocast's dtype; elsewhere both are the table's.

    The float16 copy is the parameter's :class:`~lightning_nerf.optim.HalfMirror`: :class:`~lightning_nerf.FusedAdam` writes
    both; after the step of any other optimizer, and any other in-place change of the table, the next use renews the copy.

    Given the widths of samples, :meth:`forward` fades the levels whose cells are finer than that: a pixel that covers many
    cells gets nearly nothing from them, instead of whichever cell its middle hits.

    Source: Mueller et al. 2022, equations 2 and 3, table 1; fading: Barron, Mildenhall, Verbin, Srinivasan, Hedman,
    "Zip-NeRF", ICCV 2023, equation 3.
    """

    levels: Tensor

    def __init__(
        self,
        n_dims: int = 3,
        n_levels: int = 16,
        n_features: int = 2,
        log2_table_size: int = 19,
        base_resolution: int = 16,
        max_resolution: int = 2048,
    ) -> None:
        super().__init__()
        check_integer("n_dims", n_dims, 2, 4)
        check_integer("n_levels", n_levels, 1, MAX_LEVELS)
        check_integer("n_features", n_features, 1, 8)
        if n_features not in (1, 2, 4, 8):
            raise BadArgument(f"n_features: expected 1, 2, 4 or 8, got {n_features}")
        check_integer("log2_table_size", log2_table_size, 3, 28)
        check_integer("base_resolution", base_resolution, 2, 2**20)
        check_integer("max_resolution", max_resolution, base_resolution, 2**20)
        if n_levels == 1 and base_resolution != max_resolution:
            raise BadArgument(
                "n_levels=1 has one resolution: expected base_resolution == max_resolution, "
                f"got {base_resolution} and {max_resolution}"
            )
        self.n_dims, self.n_levels, self.n_features = n_dims, n_levels, n_features
        self.log2_table_size, self.base_resolution, self.max_resolution = log2_table_size, base_resolution, max_resolution
        self.n_outputs = n_levels * n_features

        growth = math.exp(math.log(max_resolution / base_resolution) / max(n_levels - 1, 1))
        rows, offset = [], 0
        for level in range(n_levels):
            resolution = math.floor(base_resolution * growth**level + 1e-6)  # the last is max_resolution despite rounding
            vertices = (resolution + 1) ** n_dims
            size = min((vertices + 7) // 8 * 8, 2**log2_table_size)
            rows.append((resolution, offset, size))
            offset += size
        if offset >= 2**31:
            raise BadArgument(f"n_levels, log2_table_size: expected a table of less than 2**31 rows, got {offset}")
        check_fits("log2_table_size", offset, 4 * n_features, torch.get_default_device(), what="rows")
        self.register_buffer("levels", torch.tensor(rows, dtype=torch.int32))
        self.table = nn.Parameter(torch.empty(offset, n_features, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table anew from torch's default generator."""
        nn.init.uniform_(self.table, -1e-4, 1e-4)

    def working_table(self) -> Tensor:
        """A float16 copy of the table, up to date: the same tensor each time. The table itself if it is not float32."""
        table = self.table
        if table.dtype is not torch.float32:
            return table.detach()
        if torch.compiler.is_compiling() or not isinstance(table, nn.Parameter):  # torch.func.functional_call
            return table.detach().half()
        return HalfMirror.made_for(table).current(table)

    def forward(self, positions: Tensor, sigmas: Tensor | None = None) -> Tensor:
        """Features [N, n_levels * n_features] of positions [N, n_dims].

        Args:
            positions: in the unit cube.
            sigmas: [N], the standard deviation of a Gaussian around each position, in sides of the cube. The features of a
                level of n cells per side are multiplied by ``erf(1 / sqrt(8 sigma^2 n^2))``, a number in [0, 1] that is 1
                where sigma is 0. Not differentiable in them. None: of points.
        """
        if positions.shape[-1] != self.n_dims:
            raise BadArgument(f"positions: expected shape [N, {self.n_dims}], got {list(positions.shape)}")
        if positions.is_cuda and self.table.dtype is torch.float32 and torch.is_autocast_enabled("cuda"):
            # bfloat16 features of a float16 table: their gradients need the range of bfloat16.
            dtype = torch.get_autocast_dtype("cuda")
            features = hash_grid(positions, self.table, self.levels, working=self.working_table(), dtype=dtype)
        else:
            features = hash_grid(positions, self.table, self.levels)
        if sigmas is None:
            return features
        check_tensor("sigmas", sigmas, (len(positions),), torch.float32)
        by_level = features.view(-1, self.n_levels, self.n_features)
        return (by_level * self._fading(sigmas)[..., None].to(features.dtype)).view_as(features)

    @torch.no_grad()
    def _fading(self, sigmas: Tensor) -> Tensor:
        """[N, n_levels]."""
        return torch.erf(1 / (math.sqrt(8) * sigmas.abs()[:, None] * self.levels[:, 0]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HashGrid:
        super()._apply(fn, recurse)  # gives the parameter other data without another version
        if (mirror := HalfMirror.of(self.table)) is not None:
            mirror.follow(self.table)
        return self

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return (
            f"n_dims={self.n_dims}, n_levels={self.n_levels}, n_features={self.n_features}, "
            f"log2_table_size={self.log2_table_size}, base_resolution={self.base_resolution}, "
            f"max_resolution={self.max_resolution}, rows={len(self.table)}"
        )


class SphericalHarmonics(nn.Module):
    """Real spherical harmonics of directions, see :func:`lightning_nerf.ops.spherical_harmonics.spherical_harmonics`.

    >>> import torch
    >>> from lightning_nerf import SphericalHarmonics
    >>> SphericalHarmonics(degree=4)(torch.rand(7, 3)).shape
    torch.Size([7, 16])
    """

    def __init__(self, degree: int = 4) -> None:
        super().__init__()
        check_integer("degree", degree, 1, MAX_DEGREE)
        self.degree = degree
        self.n_outputs = degree**2

    def forward(self, directions: Tensor) -> Tensor:
        """Coefficients [N, degree^2] of directions [N, 3], which need not have unit length."""
        return spherical_harmonics(directions, self.degree)

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return f"degree={self.degree}"


class Frequency(nn.Module):
    """NeRF's positional encoding: ``[x, sin(2^k scale x), cos(2^k scale x)]``, k = 0 .. n_frequencies - 1.

    Outputs lie in the order x (only with ``include_input``), all sines, all cosines; frequency by frequency, axis by axis.
    See :func:`lightning_nerf.ops.frequency.frequency`.

    Args:
        n_frequencies: 1 to 64.
        include_input: whether x itself comes first.
        n_dims: size of the last dimension of x, at least 1.
        scale: a number above 0. With 1, as in the authors' code, the slowest wave has a period of 2 pi. ``math.pi`` gives
            equation 4 of the paper, with a period of 2, under which x = -1 and x = 1 look alike.

    Source: Mildenhall et al., "NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis", ECCV 2020.

    >>> import torch
    >>> from lightning_nerf import Frequency
    >>> Frequency(10)(torch.rand(7, 3)).shape
    torch.Size([7, 63])
    """

    def __init__(self, n_frequencies: int, include_input: bool = True, n_dims: int = 3, scale: float = 1.0) -> None:
        super().__init__()
        check_integer("n_frequencies", n_frequencies, 1, MAX_FREQUENCIES)
        check_instance("include_input", include_input, bool)
        check_integer("n_dims", n_dims, 1)
        check_number("scale", scale, "(0, inf)")
        self.n_frequencies, self.include_input, self.n_dims, self.scale = n_frequencies, include_input, n_dims, float(scale)
        self.n_outputs = n_dims * (2 * n_frequencies + include_input)

    def forward(self, x: Tensor) -> Tensor:
        """Encoding [..., n_outputs] of x [..., n_dims]: float32, or float64 if x is."""
        if x.shape[-1] != self.n_dims:
            raise BadArgument(f"x: expected shape [..., {self.n_dims}], got {list(x.shape)}")
        rows = x.reshape(-1, self.n_dims)
        out = frequency(rows, self.n_frequencies, include_input=self.include_input, scale=self.scale)
        return out.view(*x.shape[:-1], self.n_outputs)

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        text = f"n_frequencies={self.n_frequencies}, include_input={self.include_input}, n_dims={self.n_dims}"
        return text if self.scale == 1.0 else f"{text}, scale={self.scale}"
