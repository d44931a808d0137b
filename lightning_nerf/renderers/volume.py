"""Volume rendering by quadrature: the renderer of NeRF and its descendants."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.capabilities import has, states
from lightning_nerf.checks import BadArgument, check_instance, check_number, check_tensor
from lightning_nerf.ops.composite import composite
from lightning_nerf.renderers.base import Renderer
from lightning_nerf.types import FieldOutput, PackedSamples, Render

FILLS = ("background", "last_sample")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class VolumeRenderer(Renderer):
    """Emission and absorption along each ray, see :func:`lightning_nerf.ops.composite.composite`.

    Colors and extras go through one call; ``rgb = sum w_i rgb_i + (1 - opacity) * background``. Extras get no background.
    Computes in float32, also under autocast. Differentiable in density, rgb, extras and background.

    >>> import torch
    >>> from lightning_nerf import FieldOutput, PackedSamples, VolumeRenderer
    >>> one, ray = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    >>> samples = PackedSamples(one, one + 1, ray, torch.tensor([0, 1], dtype=torch.int32), torch.tensor([True]))
    >>> VolumeRenderer()(FieldOutput(100 * one, torch.ones(1, 3)), samples).rgb
    tensor([[1., 1., 1.]])

    Args:
        early_stop_eps: transmittance in [0, 1) below which the rest of a ray is neither seen nor given gradient. 0 by
            default: estimators prune hidden samples before the field is evaluated, where it saves most, and what is left
            then is rendered the same way in training and evaluation.
        gradient_distance: gradients of samples at distances t below it are scaled by ``(t / gradient_distance)^2``, in
        world
            units, >= 0. Volumes near cameras are seen by few pixels each, but by many samples: without the scale they
            fill with floaters. Pictures are the same. 0: no scale.
        fill: what the light that is left at the end of a ray falls on. "background": the one that is given. "last_sample":
            the color of the ray's last sample, with its gradient, in training and evaluation alike; the background shows
            only on rays without samples. For captures, which no background is behind: a field need not become opaque far
            away to hide one. Not for pictures with alpha, whose truth is on a background.

    Source: Philip, Deschaintre, "Floaters no more: radiance field gradient scaling for improved near-camera training",
    EGSR 2023, for ``gradient_distance``.
    """

    def __init__(self, early_stop_eps: float = 0.0, gradient_distance: float = 0.0, fill: str = "background") -> None:
        super().__init__()
        check_number("early_stop_eps", early_stop_eps, "[0, 1)")
        check_number("gradient_distance", gradient_distance, "[0, inf)")
        if fill not in FILLS:
            raise BadArgument(f"fill: expected one of {', '.join(FILLS)}, got {fill!r}")
        self.fill = fill
        self.early_stop_eps = early_stop_eps
        self.gradient_distance = gradient_distance

    @property
    def is_plain(self) -> bool:
        """See :attr:`Renderer.is_plain`."""
        return has(self.forward, "quadrature") and self.early_stop_eps == 0 and self.fill == "background"

    @states("quadrature")
    def forward(
        self,
        output: FieldOutput,
        samples: PackedSamples,
        *,
        background: Tensor | None = None,
        return_weights: bool = False,
    ) -> Render:
        """See :meth:`Renderer.forward`."""
        check_instance("output", output, FieldOutput)
        check_instance("output.extras", output.extras, dict)
        n = samples.t_starts.shape[0]
        check_tensor("density", output.density, (n,), _FLOATS)
        check_tensor("rgb", output.rgb, (n, 3), _FLOATS)
        for name, extra in output.extras.items():
            check_tensor(f"extras[{name!r}]", extra, (n, "k"), _FLOATS)
        if self.gradient_distance > 0:
            output = with_scaled_gradients(output, samples, self.gradient_distance)
        if self.fill == "last_sample":
            background = last_colors(output.rgb, samples, background)
        channels = torch.cat([output.rgb, *output.extras.values()], dim=1) if output.extras else output.rgb
        result = composite(
            output.density,
            channels,
            samples.t_starts,
            samples.t_ends,
            samples.offsets,
            early_stop_eps=self.early_stop_eps,
            return_weights=return_weights,
            background=background,
        )
        rgb, extras = result.channels, ()
        if output.extras:
            rgb, *extras = result.channels.split([3, *(extra.shape[1] for extra in output.extras.values())], dim=1)
        named = dict(zip(output.extras, extras, strict=True))
        return Render(rgb, result.opacity, result.depth, result.n_samples, named, result.weights)

    def extra_repr(self) -> str:
        """The constructor's arguments, for ``print``."""
        return f"early_stop_eps={self.early_stop_eps}, gradient_distance={self.gradient_distance}, fill={self.fill!r}"


def last_colors(rgb: Tensor, samples: PackedSamples, background: Tensor | None = None) -> Tensor:
    """The color [R, 3] of each ray's last sample, of colors [N, 3]; where it has none, ``background``, by default black.

    float32; differentiable in both. Nothing waits for a device.
    """
    first, end = samples.offsets[:-1], samples.offsets[1:]
    behind = rgb.new_zeros(3, dtype=torch.float32) if background is None else background.float()
    if len(rgb) == 0:
        return behind.expand(len(end), 3)
    last = rgb.index_select(0, (end - 1).clamp(min=0)).float()
    return torch.where((end > first)[:, None], last, behind)


def with_scaled_gradients(output: FieldOutput, samples: PackedSamples, distance: float) -> FieldOutput:
    """The same values, whose gradients are multiplied by the smaller of 1 and ``(t / distance)^2``, t being the middle."""
    scale = ((samples.t_starts + samples.t_ends) / (2 * distance)).square().clamp(max=1.0).nan_to_num(0.0)  # of the tail

    def scaled(values: Tensor) -> Tensor:
        factor = scale if values.ndim == 1 else scale[:, None]
        return _Scaled.apply(values, factor)  # type: ignore[no-any-return]

    extras = {name: scaled(extra) for name, extra in output.extras.items()}
    return output._replace(density=scaled(output.density), rgb=scaled(output.rgb), extras=extras)


class _Scaled(torch.autograd.Function):
    """The identity with a factor on its gradient. Values minus themselves would do, but for those that are not finite."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, factor: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (factor,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * factor.to(grad.dtype), None
