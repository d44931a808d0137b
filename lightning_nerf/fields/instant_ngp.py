"""Instant-NGP's field: a multiresolution hash grid and two small perceptrons."""

from __future__ import annotations

import functools
import math
import warnings

import torch
from torch import Tensor

from lightning_nerf.capabilities import has, states
from lightning_nerf.checks import check_instance, check_integer, check_number, needs_grad
from lightning_nerf.encodings import HashGrid, SphericalHarmonics
from lightning_nerf.fields.activations import leaky_sigmoid, truncated_exp
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.fields.mlp import FusedMLP, mlp
from lightning_nerf.ops import instant_ngp
from lightning_nerf.ops.sample_points import CONTRACTIONS_OF_POINTS, sample_points
from lightning_nerf.ops.spherical_harmonics import MAX_DEGREE
from lightning_nerf.types import Densities, Evaluated, FieldOutput, FrameKernel, PackedSamples, Pruning, Rays, Render

MAX_WIDTH, MAX_LAYERS = 4096, 16  # limits that catch typos before they take all memory
KERNEL_DEGREE = 4  # of the harmonics that kernels compute; fewer are the first of these


class InstantNGPField(RadianceField):
    """Density from hashed features of the position; color from that network's features and the direction.

    Position -> hash grid -> perceptron -> ``geometry_features``, the first of them the log density; these and the spherical
    harmonics of the direction -> perceptron -> :func:`~lightning_nerf.fields.activations.leaky_sigmoid` -> rgb. Density is
    0 outside the scene's box, unless the box has a contraction: then the field is defined everywhere.

    >>> import torch
    >>> from lightning_nerf import InstantNGPField, SceneBox
    >>> field = InstantNGPField(n_levels=4, log2_table_size=12, max_resolution=64)
    >>> field.bind(SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]])))
    >>> field.density(torch.tensor([[0.0, 0, 0], [9, 9, 9]]))[1]
    tensor(0., grad_fn=<SelectBackward0>)

    Args:
        n_levels: resolution levels of the hash grid.
        n_features: features per level, one of 1, 2, 4, 8.
        log2_table_size: log2 of the largest number of entries per level.
        base_resolution: cells per side of the coarsest level.
        max_resolution: cells per side of the finest level.
        width: hidden width of both perceptrons, 1 to 4096.
        geometry_features: outputs of the density perceptron, 1 to 4096.
        density_layers: hidden layers of the density perceptron, 0 to 16.
        color_layers: hidden layers of the color perceptron, 0 to 16.
        sh_degree: degree of the spherical harmonics, ``sh_degree**2`` coefficients, 1 to 5; 1: color does not depend on the
            direction.
        density_bias: added to the log density, per third of the box's longest side; -1 starts training with a thin fog.
        fused: under CUDA autocast, run the whole field in one kernel each way, see :mod:`lightning_nerf.ops.instant_ngp`.
            There are kernels for 32 encoded features, 2 or 4 per level, ``sh_degree`` up to 4, and the default perceptrons;
            any other shape runs op by op, with the same parameters, its perceptrons in one kernel each where there is one.
            False: op by op and layer by layer, which leaves the perceptrons their second derivatives.
        antialias: fade levels of the grid that are finer than a pixel is at the sample, see :class:`HashGrid`: what is seen
            from afar does not flicker, and pictures from far and near agree on one scene. Rays need a footprint, which
            those of data modules and cameras have. Kernels of the whole field know none, so the field runs op by op.

    Differentiable in all parameters and once in positions; op by op also in directions. A direction that requires a
    gradient is not sent to the fused kernels.

    Source: Mueller, Evans, Schied, Keller, "Instant neural graphics primitives with a multiresolution hash encoding",
    SIGGRAPH 2022, section 5.4.
    """

    free_arguments = ("fused",)
    ends_at_box = True

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
        fused: bool = True,
        antialias: bool = False,
    ) -> None:
        check_instance("antialias", antialias, bool)
        if antialias:
            self.wants = (*self.wants, "footprints")
        super().__init__()
        for name, value in [("width", width), ("geometry_features", geometry_features)]:
            check_integer(name, value, 1, MAX_WIDTH)
        for name, value in [("density_layers", density_layers), ("color_layers", color_layers)]:
            check_integer(name, value, 0, MAX_LAYERS)
        check_integer("sh_degree", sh_degree, 1, MAX_DEGREE)
        check_number("density_bias", density_bias, "(-inf, inf)")
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
            self.position_encoding.n_outputs, geometry_features, width=width, hidden_layers=density_layers, fused=fused
        )
        self.color_net = mlp(
            geometry_features + self.direction_encoding.n_outputs, 3, width=width, hidden_layers=color_layers, fused=fused
        )

        self.float()  # whatever torch's default is: kernels know no other, and the table is float32, too
        layers = (width, geometry_features, density_layers, color_layers)
        fits = n_levels * n_features == 32 and layers == (64, 16, 1, 2) and sh_degree <= KERNEL_DEGREE
        self.fused = fused and not antialias and n_features in (2, 4) and fits

    # -- op by op ----------------------------------------------------------------------------------------------------

    @states("fused")
    def geometry(self, positions: Tensor, footprints: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Density [N] and all outputs [N, geometry_features] of the density perceptron."""
        unit = self.unit_positions(positions)
        inside = (unit.clamp(0, 1) == unit).all(-1)
        widths = () if footprints is None else (self.unit_sigmas(positions, footprints),)
        features = self.density_net(self.position_encoding(unit, *widths))
        density = truncated_exp(features[:, 0] + self.density_bias) / self.unit_length
        return density * inside, features

    @states("fused")
    def density(self, positions: Tensor, footprints: Tensor | None = None) -> Tensor:
        """See :meth:`RadianceField.density`."""
        dtype = self._operands(positions.device) if footprints is None else None
        if dtype is None:
            return self._geometry(positions, footprints)[0]
        return self._fused(dtype, self.unit_positions(positions), None).density

    @states("fused")
    def forward(self, positions: Tensor, directions: Tensor, footprints: Tensor | None = None) -> FieldOutput:
        """See :meth:`RadianceField.forward`."""
        dtype = self._operands(positions.device, directions) if footprints is None else None
        if dtype is not None:
            return self._fused(dtype, self.unit_positions(positions), directions)
        density, features = self._geometry(positions, footprints)
        encoded = self.direction_encoding(directions)
        logits = self.color_net(torch.cat([encoded.to(features.dtype), features], dim=-1))
        return FieldOutput(density, leaky_sigmoid(logits))

    def _geometry(self, positions: Tensor, footprints: Tensor | None) -> tuple[Tensor, Tensor]:
        """A subclass whose :meth:`geometry` takes positions alone is called so."""
        return self.geometry(positions) if footprints is None else self.geometry(positions, footprints)

    def encoded(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        """Features [N, F] of the hash grid, see :class:`~lightning_nerf.types.EncodedField`; the field is static."""
        return self.position_encoding(self.unit_positions(positions))

    # -- in one kernel -----------------------------------------------------------------------------------------------

    def _operands(self, device: torch.device, *fixed: Tensor) -> torch.dtype | None:
        """Type of the fused kernels' operands, autocast's; None: run op by op. No gradient goes to what is ``fixed``."""
        if not (self.fused and device.type == "cuda" and torch.is_autocast_enabled("cuda") and self._kernel_weights()):
            return None
        if not instant_ngp.has_kernels(device):
            _warn_slow(device)
            return None
        dtype = torch.get_autocast_dtype("cuda")
        return dtype if dtype in (torch.float16, torch.bfloat16) and not needs_grad(*fixed) else None

    def _kernel_weights(self) -> instant_ngp.Weights | None:
        """All layers' weights; None where a subclass or a replaced layer computes something else than the kernels."""
        if not all(has(method, "fused") for method in (self.density, self.forward, self.geometry)):
            return None
        weights: list[Tensor] = []
        for net in (self.density_net, self.color_net):
            layers = net.plain_weights() if isinstance(net, FusedMLP) else None
            if layers is None:
                return None
            weights += layers
        shapes = [tuple(w.shape) for w in weights]
        n_outputs, n_inputs = instant_ngp.SHAPES["color1"]
        missing = KERNEL_DEGREE**2 - self.direction_encoding.n_outputs
        fits = shapes == [*({**instant_ngp.SHAPES, "color1": (n_outputs, n_inputs - missing)}).values()]
        return instant_ngp.Weights(*weights) if fits else None

    def _weights(self) -> instant_ngp.Weights:
        """What kernels read: the layers' weights, with zeros for the harmonics that the field leaves out."""
        weights = self._kernel_weights()
        assert weights is not None  # _operands has looked
        n = self.direction_encoding.n_outputs
        if n == KERNEL_DEGREE**2:
            return weights
        color = weights.color1
        zeros = color.new_zeros(len(color), KERNEL_DEGREE**2 - n)
        return weights._replace(color1=torch.cat([color[:, :n], zeros, color[:, n:]], 1))

    def _fused(
        self, dtype: torch.dtype, unit: Tensor, directions: Tensor | None, evaluated: Evaluated | None = None
    ) -> FieldOutput:
        encoding = self.position_encoding
        return FieldOutput(
            *instant_ngp.field(
                unit,
                directions,
                encoding.table,
                encoding.working_table(),
                encoding.levels,
                self._weights(),
                density_bias=self._kernel_bias(),
                dtype=dtype,
                evaluated=evaluated,
            )
        )

    def at_samples(self, rays: Rays, samples: PackedSamples, evaluated: Evaluated | None = None) -> FieldOutput:
        """See :meth:`RadianceField.at_samples`; encodings that :meth:`query` left are not gathered again."""
        dtype = self._ray_operands(rays, rays.directions)
        if dtype is None:
            return super().at_samples(rays, samples)
        unit, directions, _ = sample_points(rays, samples, to_unit=self.affine, contraction=self.scene_box.contraction)
        return self._fused(dtype, unit, directions, evaluated)

    def query(self, rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
        """See :meth:`RadianceField.query`; in training the encodings are kept for :meth:`at_samples`."""
        dtype = self._ray_operands(rays)
        if dtype is None:
            return super().query(rays, samples, early_stop_eps)
        weights = self._weights()
        return Densities(
            *instant_ngp.ray_densities(
                rays,
                samples,
                self.position_encoding.working_table(),
                self.position_encoding.levels,
                weights.density1,
                weights.density2,
                self.affine,
                density_bias=self._kernel_bias(),
                early_stop_eps=early_stop_eps,
                dtype=dtype,
                keep_encoded=self.training,
                contraction=self.scene_box.contraction,
            )
        )

    def frame_kernel(self, rays: Rays) -> FrameKernel | None:
        """See :meth:`RadianceField.frame_kernel`."""
        dtype = self._ray_operands(rays)
        if dtype is None:
            return None

        def render(rays: Rays, candidates: PackedSamples, pruning: Pruning) -> Render:
            with torch.no_grad():
                result = instant_ngp.render(
                    rays,
                    candidates,
                    self.position_encoding.working_table(),
                    self.position_encoding.levels,
                    self._weights(),
                    self.affine,
                    density_bias=self._kernel_bias(),
                    early_stop_eps=pruning.early_stop_eps,
                    alpha_thre=pruning.alpha_thre,
                    dtype=dtype,
                    contraction=self.scene_box.contraction,
                )
            return Render(*result)

        return render

    def _kernel_bias(self) -> float:
        """The summand of the log density in kernels: the bias, and the change from the box's unit to the world's."""
        return self.density_bias - math.log(self.unit_length)

    def _ray_operands(self, rays: Rays, *further: Tensor) -> torch.dtype | None:
        """As :meth:`_operands`, for kernels that go from rays to the unit cube by themselves."""
        dtype = self._operands(rays.origins.device, rays.origins, *further)
        return dtype if self.scene_box.contraction in CONTRACTIONS_OF_POINTS else None


@functools.cache
def _warn_slow(device: torch.device) -> None:
    warnings.warn(
        f"InstantNGPField runs op by op on {torch.cuda.get_device_name(device)}, several times slower than in one kernel, "
        "for which it takes compute capability 8.0, 8.7, 9.0 or 10.x (104 KiB of shared memory a block) and CUDA "
        "kernels in the library.",
        RuntimeWarning,
        stacklevel=2,
    )
