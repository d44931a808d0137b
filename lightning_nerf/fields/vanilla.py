"""The field of the first NeRF: one wide perceptron on encoded positions, with a branch for the direction."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nerf.capabilities import states
from lightning_nerf.checks import BadArgument, check_integer, check_number
from lightning_nerf.encodings import Frequency
from lightning_nerf.fields.activations import leaky_sigmoid
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.fields.front_to_back import front_to_back
from lightning_nerf.fields.wide_mlp import (
    MAX_WIDTH,
    linear_layer,
    linear_layers,
    operands,
    run,
    trunk_layers,
    weights_and_biases,
)
from lightning_nerf.kept_dtypes import KeptDtypes
from lightning_nerf.ops.random import STREAM_DENSITY_NOISE, key_from_torch, make_key, random_uniform
from lightning_nerf.ops.sample_points import sample_points
from lightning_nerf.ops.wide_mlp import MAX_FREQUENCIES, Encoding, Input
from lightning_nerf.ops.wide_mlp_layout import Layer, Network
from lightning_nerf.scene_box import HALF_SIDE, SceneBox, encodable, encoded_reach
from lightning_nerf.types import Densities, Evaluated, FieldOutput, PackedSamples, Rays

DENSITY_ACTIVATIONS = ("relu", "softplus")


class VanillaField(KeptDtypes, RadianceField):
    """Density from the encoded position, color from that network's last hidden layer and the encoded direction.

    Position -> :class:`Frequency` -> eight layers of 256, of which the one behind ``skip`` takes the encoding once more ->
    density; a linear layer and the encoded direction -> one layer of 128 -> rgb. Positions are encoded as multiples of a
    half-side of the scene's box, from -1.5 to 1.5, so that world units do not matter. Density is 0 outside the box, unless
    the box has a contraction: then the field is defined everywhere, and the box's surroundings reach to 3.

    >>> import torch
    >>> from lightning_nerf import SceneBox, VanillaField
    >>> field = VanillaField(width=64, hidden_layers=3, skip=1)
    >>> field.bind(SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]])))
    >>> field(torch.zeros(5, 3), torch.ones(5, 3)).rgb.shape
    torch.Size([5, 3])

    Args:
        width: of the hidden layers; see :class:`WideMLP` for which of them have kernels.
        hidden_layers: before density, >= 1.
        skip: hidden layer behind which the encoded position is concatenated, 0 being the first; None: nowhere.
        view_width: of the layer that sees the direction.
        position_frequencies: L of the encoding of positions, 1 to 16.
        direction_frequencies: L of the encoding of directions, 1 to 16.
        include_input: whether encodings hold what they encode.
        frequency_scale: of both encodings: 1, as in the authors' code and NerfAcc, or pi as in the paper's equation 4.
        density_activation: "relu" or "softplus".
        density_noise: standard deviation of noise added to the density before its activation, in training, per third of
            the box's longest side; 0: none. The paper has 1 for photographs. The noise is on what rays see, not on
            :meth:`density`, from which occupancy grids are made. Each field and each process draws its own; the seed
            comes from torch's generator, when the field is made.
        fused: under CUDA autocast, run all layers in one kernel each way; False: layer by layer.

    Differentiable in all parameters and in positions; layer by layer also in directions. A direction that requires a
    gradient is not sent to the kernels. Parameters are float32, or float64 after ``.double()``, which runs layer by layer.

    Source: Mildenhall et al., "NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis", ECCV 2020,
    figure 7.
    """

    free_arguments = ("fused", "density_noise")
    ends_at_box = True

    DTYPES: ClassVar[dict[str, torch.dtype]] = dict.fromkeys(("aabb", "_affine", "_encoding_affine"), torch.float32)

    noise_key: Tensor  # [3] int64: seed, rank, number of the next draw; saved, so that a resumed run goes on
    _encoding_affine: Tensor  # [2, 3] factor and summand, from world positions to what is encoded

    def __init__(
        self,
        width: int = 256,
        hidden_layers: int = 8,
        skip: int | None = 4,
        view_width: int = 128,
        position_frequencies: int = 10,
        direction_frequencies: int = 4,
        include_input: bool = True,
        frequency_scale: float = 1.0,
        density_activation: str = "relu",
        density_noise: float = 0.0,
        fused: bool = True,
    ) -> None:
        super().__init__()
        check_integer("view_width", view_width, 1, MAX_WIDTH)
        for name, value in [
            ("position_frequencies", position_frequencies),
            ("direction_frequencies", direction_frequencies),
        ]:
            check_integer(name, value, 1, MAX_FREQUENCIES)
        if density_activation not in DENSITY_ACTIVATIONS:
            raise BadArgument(
                f"density_activation: expected one of {', '.join(DENSITY_ACTIVATIONS)}, got {density_activation!r}"
            )
        check_number("density_noise", density_noise, "[0, inf)")
        self.position_encoding = Frequency(position_frequencies, include_input, scale=frequency_scale)
        self.direction_encoding = Frequency(direction_frequencies, include_input, scale=frequency_scale)
        trunk = trunk_layers(width, hidden_layers, () if skip is None else (skip,))
        inputs = self.position_encoding.n_outputs, self.direction_encoding.n_outputs
        density = Layer(1, True, is_head=True)
        self.density_network = Network(inputs[:1], (*trunk, density))
        self.network = Network(inputs, (*trunk, density, Layer(view_width, True, (1,)), Layer(3, True, is_head=True)))
        *trunk_modules, density_layer, view_layer, color_layer = linear_layers(self.network)
        self.trunk = nn.ModuleList(trunk_modules)
        self.density_layer = density_layer
        self.feature_layer = linear_layer(width, width)
        self.view_layer = view_layer
        self.color_layer = color_layer
        self.density_activation = density_activation
        self.density_noise = density_noise
        self.fused = fused
        self.register_buffer("noise_key", key_from_torch() if density_noise > 0 else make_key(0))
        self.register_buffer("_encoding_affine", torch.full((2, 3), float("nan")), persistent=False)

    def _lay_over(self, scene_box: SceneBox) -> None:
        super()._lay_over(scene_box)
        factor, summand = self._affine
        self._encoding_affine.copy_(torch.stack([2 * HALF_SIDE * factor, 2 * HALF_SIDE * summand - HALF_SIDE]))

    @states("counted")
    def density(self, positions: Tensor, *, count: Tensor | None = None) -> Tensor:
        """See :meth:`RadianceField.density`; positions from ``count`` [1] int32 on need no density and cost nothing."""
        return self._density(self._encodable(positions), count, noise=False)

    @states("counted")
    def forward(self, positions: Tensor, directions: Tensor, *, count: Tensor | None = None) -> FieldOutput:
        """See :meth:`RadianceField.forward`; ``count`` as of :meth:`density`."""
        return self._output(self._encodable(positions), self._seen(directions), count)

    @states("counted")
    def query(self, rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
        """See :meth:`RadianceField.query`: from front to back, no further than light gets, where that matters."""

        def densities_of(samples: PackedSamples) -> Tensor:
            return self._density(self._of_samples(rays, samples), samples.offsets[-1:], noise=True)

        # While a field is young its fog hides little: then further rounds cost more than they spare.
        if early_stop_eps > 0 and not self.training:
            return Densities(front_to_back(samples, densities_of, early_stop_eps))
        return Densities(densities_of(samples))

    @states("counted")
    def at_samples(self, rays: Rays, samples: PackedSamples, evaluated: Evaluated | None = None) -> FieldOutput:
        """See :meth:`RadianceField.at_samples`; directions are encoded once for each ray."""
        direction = self._seen(rays.directions, samples.ray_indices)
        return self._output(self._of_samples(rays, samples), direction, samples.offsets[-1:])

    def ends_at_count(self, rays: Rays) -> bool:
        """Whether :meth:`query` and :meth:`at_samples` do no work behind ``offsets[-1]``: where there is one kernel."""
        weights, _ = weights_and_biases([*self.trunk, self.density_layer, self.view_layer, self.color_layer])
        return self.fused and operands(self.network, [Input(rays.origins), Input(rays.directions)], weights) is not None

    # -- the layers --------------------------------------------------------------------------------------------------

    def _density(self, x: Tensor, count: Tensor | None, noise: bool) -> Tensor:
        position, inside = self._position(x)
        layers = weights_and_biases([*self.trunk, self.density_layer])
        raw = run(self.density_network, [position], *layers, count=count, fused=self.fused)
        return self._activated(raw[:, 0], noise) * inside

    def _output(self, x: Tensor, direction: Input, count: Tensor | None) -> FieldOutput:
        position, inside = self._position(x)
        raw = run(self.network, [position, direction], *self.layers(), count=count, fused=self.fused)
        return FieldOutput(self._activated(raw[:, 0], noise=True) * inside, leaky_sigmoid(raw[:, 1:]))

    def layers(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases of ``network``'s layers, in their order."""
        weights, biases = weights_and_biases([*self.trunk, self.density_layer, self.view_layer, self.color_layer])
        weights[-2], biases[-2] = self.merged_view_layer()
        return weights, biases

    def merged_view_layer(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the feature layer and the view layer in one: nothing is between them.

        One product of two small matrices takes the place of a ninth of all products with samples.
        """
        (feature, view), (feature_bias, view_bias) = weights_and_biases([self.feature_layer, self.view_layer])
        with torch.autocast(feature.device.type, enabled=False):
            width = feature.shape[0]
            features, directions = view[:, :width], view[:, width:]
            weight = torch.cat([features @ feature, directions], 1)
            return weight, torch.addmv(view_bias, features, feature_bias)

    @property
    def is_noisy(self) -> bool:
        """See :class:`~lightning_nerf.types.NoisyField`."""
        return self.density_noise > 0 and self.training

    @property
    def _reach(self) -> float:
        """Where the unit cube ends in positions as they are encoded."""
        return encoded_reach(self.scene_box.contraction)

    def _encodable(self, positions: Tensor) -> Tensor:
        """World positions [N, 3] as they are encoded: the box goes from -1.5 to 1.5, contracted space from -3 to 3."""
        return encodable(self.unit_positions(positions), self.scene_box.contraction)

    def _of_samples(self, rays: Rays, samples: PackedSamples) -> Tensor:
        """The same of the middle of each sample; without contraction in one step."""
        if self.scene_box.contraction == "none":
            return sample_points(rays, samples, to_unit=self._encoding_affine)[0]
        return self._encodable(sample_points(rays, samples)[0])

    def _position(self, x: Tensor) -> tuple[Input, Tensor]:
        """Positions to be encoded, and whether they lie in what the field knows, [N] bool."""
        dtype = self.density_layer.bias.dtype
        if dtype not in (torch.float32, torch.float64):
            raise BadArgument(
                f"{type(self).__name__}: expected parameters of torch.float32 or torch.float64, got {dtype}; "
                "for half precision, run a float32 field under torch.autocast"
            )
        x = x.to(torch.promote_types(x.dtype, dtype))
        return Input(x, _encoding(self.position_encoding)), x.abs().amax(-1) <= self._reach

    def _seen(self, directions: Tensor, index: Tensor | None = None) -> Input:
        """Directions to be encoded, of samples, or of rays that ``index`` names."""
        return Input(F.normalize(directions, dim=-1), _encoding(self.direction_encoding), index)

    def _activated(self, raw: Tensor, noise: bool) -> Tensor:
        """Density per unit of world length; ``noise``: in training with noise."""
        if noise and self.density_noise > 0 and self.training:
            # DDP's wrapper gives all ranks the buffers of rank 0 before each step.
            is_one_of_many = torch.distributed.is_available() and torch.distributed.is_initialized()
            self.noise_key[1].fill_(torch.distributed.get_rank() if is_one_of_many else 0)
            u, v = random_uniform(self.noise_key, STREAM_DENSITY_NOISE, len(raw), 2).unbind(1)
            self.noise_key[2] += 1
            raw = raw + self.density_noise * (-2 * torch.log1p(-u)).sqrt() * (2 * math.pi * v).cos()
        density = raw.relu() if self.density_activation == "relu" else F.softplus(raw)
        return density / self.unit_length


def _encoding(module: Frequency) -> Encoding:
    return Encoding(module.n_frequencies, module.include_input, module.scale)
