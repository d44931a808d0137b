"""A field that moves: a network gives, for each point and time, the place in a scene that stands still."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from lightning_nerf.capabilities import has, states
from lightning_nerf.checks import REALS, BadArgument, BadType, check_instance, check_integer, check_number, check_tensor
from lightning_nerf.encodings import Frequency
from lightning_nerf.fields.base import WANTS, RadianceField
from lightning_nerf.fields.front_to_back import front_to_back
from lightning_nerf.fields.wide_mlp import linear_layers, run, trunk_layers, weights_and_biases
from lightning_nerf.ops.sample_points import sample_points
from lightning_nerf.ops.wide_mlp import MAX_FREQUENCIES, Encoding, Input
from lightning_nerf.ops.wide_mlp_layout import Layer, Network
from lightning_nerf.scene_box import SceneBox, encodable
from lightning_nerf.types import Densities, Evaluated, FieldOutput, NoisyField, PackedSamples, Rays, has_encoding

FIRST_WEIGHTS = 1e-4  # largest weight of the last layer of a new warp, up to a width of 256


class DeformedField(RadianceField):
    """A canonical field seen through a warp: density and color at (x, t) are the canonical field's at x + offset(x, t).

    The warp is a perceptron on the encoded position and the encoded time. Positions are encoded as by
    :class:`VanillaField`, as multiples of a half-side of the scene's box from -1.5 to 1.5; times from 0 at the first of the
    data to 1 at the last. Offsets are in thirds of the box's longest side, so that world units do not matter. A new warp
    moves no point by more than a hundredth of the box. Points may leave the box; the canonical field says what is there.

    >>> import torch
    >>> from lightning_nerf import DeformedField, SceneBox, VanillaField
    >>> field = DeformedField(VanillaField(width=64, hidden_layers=3, skip=1), identity_at_zero=True)
    >>> field.bind(SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]])))
    >>> field.bind_times(0.0, 1.0)
    >>> field.offsets(torch.zeros(2, 3), times=torch.tensor([0.0, 0.5])).any(-1)
    tensor([False,  True])

    Args:
        canonical: the field that is moved, any :class:`RadianceField`. It gets all that it wants, times included.
        width: of the warp's hidden layers, see :class:`WideMLP` for which of them have kernels.
        hidden_layers: of the warp, >= 1.
        skip: hidden layer of the warp behind which position and time are concatenated once more, 0 being the first; None:
            nowhere.
        position_frequencies: L of the warp's encoding of positions, 1 to 16.
        time_frequencies: L of the warp's encoding of times, 1 to 16.
        identity_at_zero: at the first time of the data offsets are exactly 0, so that the canonical scene is the first one.
        warp_rate_factor: learning rate of the warp as a multiple of the optimizer's, >= 0. A hash grid wants rates at which
            a perceptron that moves all points loses its way: then a tenth.
        fused: under CUDA autocast, run the warp's layers in one kernel each way; False: layer by layer.

    The defaults are T-NeRF as in NerfAcc's example. D-NeRF is ``width=256, hidden_layers=8, skip=4,
    position_frequencies=10, time_frequencies=10, identity_at_zero=True``.

    ``FieldOutput.per_sample`` holds ``offset`` [N, 3], for :class:`~lightning_nerf.WarpSize`.

    Differentiable in all parameters. The warp's gradient is that of the canonical field in its positions.

    Source: Pumarola, Corona, Pons-Moll, Moreno-Noguer, "D-NeRF: neural radiance fields for dynamic scenes", CVPR 2021; the
    defaults: Li, Gao, Tancik, Kanazawa, "NerfAcc: efficient sampling accelerates NeRFs", ICCV 2023.
    """

    wants: Collection[str] = ("times",)

    def __init__(
        self,
        canonical: RadianceField,
        width: int = 64,
        hidden_layers: int = 4,
        skip: int | None = 2,
        position_frequencies: int = 4,
        time_frequencies: int = 4,
        identity_at_zero: bool = False,
        warp_rate_factor: float = 1.0,
        fused: bool = True,
    ) -> None:
        check_instance("canonical", canonical, RadianceField)
        self.wants = ("times", *(name for name in canonical.wants if name != "times"))
        super().__init__()
        for name, value in [("position_frequencies", position_frequencies), ("time_frequencies", time_frequencies)]:
            check_integer(name, value, 1, MAX_FREQUENCIES)
        check_instance("identity_at_zero", identity_at_zero, bool)
        check_instance("fused", fused, bool)
        check_number("warp_rate_factor", warp_rate_factor, "[0, inf)")
        self.free_arguments = ("fused", "warp_rate_factor", *(f"canonical.{name}" for name in canonical.free_arguments))
        self.canonical = canonical
        self.identity_at_zero = identity_at_zero
        self.warp = Warp(width, hidden_layers, skip, position_frequencies, time_frequencies, fused)
        if warp_rate_factor != 1:  # else the warp is trained in the field's group, as in older checkpoints
            self.warp.rate_factor = warp_rate_factor

    def bind(self, scene_box: SceneBox) -> None:
        """See :meth:`RadianceField.bind`; the canonical field is bound to the same box."""
        super().bind(scene_box)
        self.canonical.bind(scene_box)

    def bind_times(self, first: float, last: float) -> None:
        """See :meth:`RadianceField.bind_times`; the canonical field is told, too."""
        super().bind_times(first, last)
        self.canonical.bind_times(first, last)

    @property
    def is_noisy(self) -> bool:
        """See :class:`~lightning_nerf.types.NoisyField`; as the canonical field is."""
        return isinstance(self.canonical, NoisyField) and self.canonical.is_noisy

    def offsets(self, positions: Tensor, times: Tensor, *, count: Tensor | None = None) -> Tensor:
        """Offsets [N, 3] float32 of positions [N, 3] at times [N], in thirds of the box's longest side.

        ``count`` [1] int32: positions from this index on need no offset, and get any finite one.
        """
        unit = self.unit_positions(positions)
        check_tensor("times", times, (len(unit),), REALS)
        unit_times = self.unit_times(times).to(unit.dtype)
        offsets = self.warp(encodable(unit, self.scene_box.contraction), unit_times, count)
        return torch.where(unit_times[:, None] == 0, 0.0, offsets) if self.identity_at_zero else offsets

    def warped(self, positions: Tensor, times: Tensor, *, count: Tensor | None = None) -> Tensor:
        """World positions [N, 3] in the canonical scene for positions [N, 3] at times [N]."""
        return torch.add(positions, self.offsets(positions, times, count=count), alpha=self.unit_length)

    @property
    def is_encoded(self) -> bool:
        """Whether the canonical field has an encoding, see :func:`~lightning_nerf.types.has_encoding`."""
        return has_encoding(self.canonical)

    def encoded(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        """The canonical field's features [N, F] at warped positions, see :class:`~lightning_nerf.types.EncodedField`.

        Raises:
            BadArgument: there are no times.
            BadType: the canonical field has no encoding.
        """
        if times is None:
            raise BadArgument(f"times: expected one for each of {len(positions)} positions, got None")
        if not has_encoding(self.canonical):
            name = type(self.canonical).__name__
            raise BadType(f"canonical: expected a field with encoded(positions, times), got {name}")
        return self.canonical.encoded(self.warped(positions, times), times)

    @states("counted")
    def density(  # type: ignore[override]
        self, positions: Tensor, *, times: Tensor, count: Tensor | None = None, **wanted: Tensor
    ) -> Tensor:
        """See :meth:`RadianceField.density`; positions from ``count`` [1] int32 on need no density."""
        density = self.canonical.density
        moved = self.warped(positions, times, count=count)
        return density(moved, **self._of_canonical(times, wanted), **_counted(density, count))

    @states("counted")
    def forward(  # type: ignore[override]
        self, positions: Tensor, directions: Tensor, *, times: Tensor, count: Tensor | None = None, **wanted: Tensor
    ) -> FieldOutput:
        """See :meth:`RadianceField.forward`; ``count`` as of :meth:`density`."""
        offsets = self.offsets(positions, times, count=count)
        moved = torch.add(positions, offsets, alpha=self.unit_length)
        more = {**self._of_canonical(times, wanted), **_counted(self.canonical.forward, count)}
        output = self.canonical(moved, directions, **more)
        return output._replace(per_sample={**output.per_sample, "offset": offsets})

    def _of_canonical(self, times: Tensor, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**wanted, "times": times} if "times" in self.canonical.wants else wanted

    # -- along rays: no work for the tail of the samples -------------------------------------------------------------

    def at_samples(self, rays: Rays, samples: PackedSamples, evaluated: Evaluated | None = None) -> FieldOutput:
        """See :meth:`RadianceField.at_samples`."""
        positions, directions, times = sample_points(rays, samples)
        more = {**self._wanted(rays, samples, times, WANTS), **_counted(self.forward, samples.offsets[-1:])}
        return self(positions, directions, **more)

    def query(self, rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
        """See :meth:`RadianceField.query`; in evaluation from the front to the back of each ray, if that saves work."""
        if self.is_noisy:  # the noise is in what the canonical field shows to rays, not in its density
            return Densities(self.at_samples(rays, samples).density.float())

        def densities_of(samples: PackedSamples) -> Tensor:
            positions, _, times = sample_points(rays, samples)
            more = self._wanted(rays, samples, times, ("times", "footprints"))
            return self.density(positions, **more, **_counted(self.density, samples.offsets[-1:])).float()

        if early_stop_eps > 0 and not self.training and has(self.canonical.density, "counted"):
            return Densities(front_to_back(samples, densities_of, early_stop_eps))
        return Densities(densities_of(samples))


def _counted(method: Callable[..., object], count: Tensor | None) -> dict[str, Tensor]:
    """The argument ``count`` for a method that states that it takes one, else none."""
    return {} if count is None or not has(method, "counted") else {"count": count}


class Warp(nn.Module):
    """Offsets of points in space and time: a perceptron on both encodings, which one layer may take once more."""

    rate_factor: float | None = None  # of the learning rate, see modules.optimizers.parameter_groups

    def __init__(
        self,
        width: int,
        hidden_layers: int,
        skip: int | None,
        position_frequencies: int,
        time_frequencies: int,
        fused: bool,
    ) -> None:
        super().__init__()
        encodings = [Frequency(position_frequencies), Frequency(time_frequencies, n_dims=1)]
        trunk = trunk_layers(width, hidden_layers, () if skip is None else (skip,))
        both = [layer._replace(takes_inputs=(0, 1)) if layer.takes_inputs else layer for layer in trunk]
        self.network = Network(tuple(e.n_outputs for e in encodings), (*both, Layer(3, True, is_head=True)))
        self.encodings = [Encoding(e.n_frequencies, e.include_input, e.scale) for e in encodings]
        self.layers = nn.ModuleList(linear_layers(self.network))
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.uniform_(last.weight, 0.0, FIRST_WEIGHTS * min(1.0, 256 / width))
        self.fused = fused

    def forward(self, positions: Tensor, times: Tensor, count: Tensor | None = None) -> Tensor:
        """Offsets [N, 3] of positions [N, 3] and times [N], both as they are to be encoded; see :meth:`WideMLP.forward`."""
        inputs = [Input(rows, e) for rows, e in zip((positions, times[:, None]), self.encodings, strict=True)]
        return run(self.network, inputs, *weights_and_biases(self.layers), count=count, fused=self.fused)

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return f"fused={self.fused}"
