"""Instant-NGP's field in one kernel: encoding, density perceptron, spherical harmonics, color perceptron.

The shape is that of the paper: 32 encoded features (16 levels of 2, or 8 of 4), density perceptron 32 - 64 - 16, color
perceptron (16 harmonics + 16 geometry features) - 64 - 64 - 3, ReLU between layers, no biases. Operands of every product
are rounded to float16 or bfloat16, sums are float32. CUDA kernels where :func:`has_kernels` says; elsewhere the reference.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_same_device, check_tensor, needs_grad
from lightning_nerf.ops import library
from lightning_nerf.ops.instant_ngp_reference import (
    ENCODED,
    SHAPES,
    Weights,
    field_backward_reference,
    field_reference,
    ray_densities_reference,
    render_reference,
)
from lightning_nerf.ops.library import Context, Inputs
from lightning_nerf.scene_box import CONTRACTIONS
from lightning_nerf.types import Evaluated, PackedSamples, Rays

SHARED_BYTES = 106496  # of shared memory for a block of the backward kernel


@functools.cache
def has_kernels(device: torch.device) -> bool:
    """Whether these ops run as kernels on a CUDA device.

    They need tensor cores that take bfloat16 and 104 KiB of shared memory a block: compute capability 8.0 and 8.7, 9.0 and
    10.x have it, 8.6, 8.9 and 12.0 have not.
    """
    if device.type != "cuda" or not library.has_kernel("instant_ngp_field", "CUDA"):
        return False
    properties = torch.cuda.get_device_properties(device)
    return properties.major >= 8 and properties.shared_memory_per_block_optin >= SHARED_BYTES


def field(
    positions: Tensor,
    directions: Tensor | None,
    table: Tensor,
    working: Tensor,
    levels: Tensor,
    weights: Weights,
    *,
    density_bias: float,
    dtype: torch.dtype,
    evaluated: Evaluated | None = None,
) -> tuple[Tensor, Tensor]:
    """Density [N] and color [N, 3] of N samples; without directions the density alone (and an empty [0, 3]).

        g = density2 relu(density1 hash_grid(x)),   density = exp(g_0 + density_bias) inside the unit cube, else 0
        rgb = sigmoid(color3 relu(color2 relu(color1 [Y(d), g])))

    Args:
        positions: [N, 3] float32, the scene's box being the unit cube; see :func:`~lightning_nerf.ops.hash_grid.hash_grid`.
        directions: [N, 3] float32 of any length, or None.
        table: [T, F] float32, F = 2 or 4: the parameter that gets the gradient.
        working: [T, F] float16: what is read in its place.
        levels: [32 / F, 3] int32.
        weights: of the layers.
        density_bias: added to the log density.
        dtype: torch.float16 or torch.bfloat16, of the products' operands.
        evaluated: encodings of the samples that :func:`ray_densities` kept; they are not gathered again.

    Differentiable once in table, weights and positions (see :func:`~lightning_nerf.ops.hash_grid.hash_grid`); directions
    that require a gradient are refused. The derivative of exp is that of ``exp(clamp(x, -15, 15))``. That of a sigmoid is
    at least 0.0066 where a descent step brings its logit closer to 0, see
    :func:`~lightning_nerf.fields.activations.leaky_sigmoid`. The table's gradient is summed in float32; incoming gradients
    of encodings have ``dtype``, so with float16 the loss wants scaling.

    Source: Mueller, Evans, Schied, Keller, "Instant neural graphics primitives with a multiresolution hash encoding",
    SIGGRAPH 2022, section 5.4; one kernel for a whole perceptron: Mueller, Rousselle, Novak, Keller, "Real-time neural
    radiance caching for path tracing", SIGGRAPH 2021, section 5.
    """
    check_tensor("positions", positions, ("N", 3), torch.float32)
    n = positions.shape[0]
    if directions is not None:
        check_tensor("directions", directions, (n, 3), torch.float32)
    _check_parameters(table, working, levels, weights, dtype)
    encoded, sources = (None, None) if evaluated is None else evaluated
    check_same_device(positions=positions, directions=directions, table=table, working=working, encoded=encoded)
    if needs_grad(directions):
        raise NotImplementedError("instant_ngp.field has no derivative in directions; build the field with fused=False")
    density, rgb, _ = torch.ops.lightning_nerf.instant_ngp_field(
        positions.contiguous(),
        None if directions is None else directions.contiguous(),
        table,
        working,
        levels,
        encoded,
        sources,
        *weights,
        density_bias,
        dtype == torch.bfloat16,
        evaluated is None and torch.is_grad_enabled(),
    )
    return density, rgb


def ray_densities(
    rays: Rays,
    samples: PackedSamples,
    working: Tensor,
    levels: Tensor,
    density1: Tensor,
    density2: Tensor,
    to_unit: Tensor,
    *,
    density_bias: float,
    early_stop_eps: float,
    dtype: torch.dtype,
    keep_encoded: bool = False,
    contraction: str = "none",
) -> tuple[Tensor, Tensor | None]:
    """Densities [N] of packed samples, evaluated from the front of each ray until less than ``early_stop_eps`` is left.

    In the tail and, from a few samples behind that point on, the density is 0: the sample has not been evaluated. How many
    hidden ones are differs from run to run, all others do not.

    Args:
        rays: R rays.
        samples: N packed samples.
        working, levels, density1, density2, density_bias, dtype: see :func:`field`.
        to_unit: [2, 3], factor and summand that make the scene's box the unit cube.
        contraction: behind it, "none", "l2" or "linf".
        early_stop_eps: transmittance in [0, 1); 0 evaluates all.
        keep_encoded: also return the encodings [N, 32] in ``dtype``; rows that were not evaluated hold anything.

    No gradient flows.
    """
    densities, encoded = torch.ops.lightning_nerf.instant_ngp_ray_densities(
        rays.origins.contiguous(),
        rays.directions.contiguous(),
        samples.t_starts,
        samples.t_ends,
        samples.offsets,
        working,
        levels,
        density1.detach(),
        density2.detach(),
        to_unit,
        density_bias,
        early_stop_eps,
        dtype == torch.bfloat16,
        keep_encoded,
        CONTRACTIONS.index(contraction),
    )
    return densities, encoded if keep_encoded else None


def render(
    rays: Rays,
    samples: PackedSamples,
    working: Tensor,
    levels: Tensor,
    weights: Weights,
    to_unit: Tensor,
    *,
    density_bias: float,
    early_stop_eps: float,
    alpha_thre: Tensor,
    dtype: torch.dtype,
    contraction: str = "none",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Color [R, 3] without background, opacity [R], depth [R] and composited samples [R] int32 of R rays, in one kernel.

    What pruning (:func:`~lightning_nerf.ops.visibility.prune`), :func:`field` and compositing
    (:func:`~lightning_nerf.ops.composite.composite`) would give, up to rounding, without evaluating what is behind an
    opaque surface. ``alpha_thre`` is a 0-d float32 tensor; the other arguments are those of :func:`ray_densities` and
    :func:`field`. No gradient flows. How a ray's sums are grouped, and so their last bits, varies from run to run.
    """
    return torch.ops.lightning_nerf.instant_ngp_render(
        rays.origins.contiguous(),
        rays.directions.contiguous(),
        samples.t_starts,
        samples.t_ends,
        samples.offsets,
        working,
        levels,
        *(w.detach() for w in weights),
        to_unit,
        density_bias,
        early_stop_eps,
        alpha_thre,
        dtype == torch.bfloat16,
        CONTRACTIONS.index(contraction),
    )


def _check_parameters(table: Tensor, working: Tensor, levels: Tensor, weights: Weights, dtype: torch.dtype) -> None:
    check_tensor("table", table, ("T", "F"), torch.float32)
    check_tensor("working", working, tuple(table.shape), torch.float16)
    check_tensor("levels", levels, (ENCODED // max(1, table.shape[1]), 3), torch.int32)
    if table.shape[1] not in (2, 4):
        raise BadArgument(f"table: expected 2 or 4 features per level, got {table.shape[1]}")
    for (name, shape), weight in zip(SHAPES.items(), weights, strict=True):
        check_tensor(f"weights.{name}", weight, shape, torch.float32)
    if dtype not in (torch.float16, torch.bfloat16):
        raise BadArgument(f"dtype: expected torch.float16 or torch.bfloat16, got {dtype}")


# -- derivative ----------------------------------------------------------------------------------------------------------


def _setup_context(ctx: Context, inputs: Inputs, output: tuple[Tensor, Tensor, Tensor]) -> None:
    positions, directions, table, working, levels, encoded, sources, *weights, density_bias, _, _ = inputs
    features = output[2] if encoded is None else encoded
    ctx.mark_non_differentiable(output[2])
    working = working if ctx.needs_input_grad[0] else None
    ctx.save_for_backward(positions, directions, table, working, levels, features, sources, *weights)
    ctx.density_bias = density_bias


def _backward(ctx: Context, grad_density: Tensor | None, grad_rgb: Tensor | None, _: Tensor | None) -> Inputs:
    positions, directions, table, working, levels, features, sources, *weights = ctx.saved_tensors
    none = (None,) * 15
    if grad_density is None and grad_rgb is None:
        return none
    grad_features, flat = torch.ops.lightning_nerf.instant_ngp_field_backward(
        None if grad_density is None else grad_density.contiguous(),
        None if grad_rgb is None else grad_rgb.contiguous(),
        positions,
        directions,
        features,
        sources,
        *weights,
        ctx.density_bias,
    )
    grads = [g.view(w.shape) for g, w in zip(flat.split([w.numel() for w in weights]), weights, strict=True)]
    for_positions, for_table = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    grad_positions = grad_table = None
    if for_positions or for_table:
        deterministic = torch.are_deterministic_algorithms_enabled()
        grad_positions, grad_table = torch.ops.lightning_nerf.hash_grid_backward(
            grad_features, positions, table, levels, working, for_positions, for_table, deterministic
        )
    return (
        grad_positions if for_positions else None,
        None,
        grad_table if for_table else None,
        *none[3:7],
        *grads,
        *none[12:],
    )


def _fake_field(
    positions: Tensor,
    directions: Tensor | None,
    table: Tensor,
    working: Tensor,
    levels: Tensor,
    encoded: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    n, (bfloat16, keep) = positions.shape[0], rest[-2:]
    dtype = torch.bfloat16 if bfloat16 else torch.float16
    return (
        positions.new_empty(n),
        positions.new_empty(0 if directions is None else n, 3),
        positions.new_empty(n if keep else 0, ENCODED, dtype=dtype),
    )


def _fake_field_backward(
    grad_density: Tensor | None, grad_rgb: Tensor | None, positions: Tensor, directions: Any, features: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    n_weights = sum(rows * columns for rows, columns in SHAPES.values())
    return features.new_empty(positions.shape[0], ENCODED), positions.new_empty(n_weights)


def _fake_ray_densities(origins: Tensor, directions: Tensor, t_starts: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    bfloat16, keep = rest[9:11]
    n = t_starts.shape[0]
    dtype = torch.bfloat16 if bfloat16 else torch.float16
    return origins.new_empty(n), origins.new_empty(n if keep else 0, ENCODED, dtype=dtype)


def _fake_render(origins: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = origins.shape[0]
    return origins.new_empty(n, 3), origins.new_empty(n), origins.new_empty(n), origins.new_empty(n, dtype=torch.int32)


_WEIGHTS = ", ".join(f"Tensor {name}" for name in SHAPES)
_PACKED = "Tensor origins, Tensor directions, Tensor t_starts, Tensor t_ends, Tensor offsets"
library.define(
    "instant_ngp_field",
    "(Tensor positions, Tensor? directions, Tensor table, Tensor working, Tensor levels, Tensor? encoded, Tensor? sources, "
    f"{_WEIGHTS}, float density_bias, bool bfloat16, bool keep_features) -> (Tensor, Tensor, Tensor)",
    field_reference,
    _fake_field,
)
library.define(
    "instant_ngp_field_backward",
    "(Tensor? grad_density, Tensor? grad_rgb, Tensor positions, Tensor? directions, Tensor features, Tensor? sources, "
    f"{_WEIGHTS}, float density_bias) -> (Tensor, Tensor)",
    field_backward_reference,
    _fake_field_backward,
)
library.define(
    "instant_ngp_ray_densities",
    f"({_PACKED}, Tensor working, Tensor levels, Tensor density1, Tensor density2, Tensor to_unit, float density_bias, "
    "float early_stop_eps, bool bfloat16, bool keep_features, int contraction=0) -> (Tensor, Tensor)",
    ray_densities_reference,
    _fake_ray_densities,
)
library.define(
    "instant_ngp_render",
    f"({_PACKED}, Tensor working, Tensor levels, {_WEIGHTS}, Tensor to_unit, float density_bias, float early_stop_eps, "
    "Tensor alpha_thre, bool bfloat16, int contraction=0) -> (Tensor, Tensor, Tensor, Tensor)",
    render_reference,
    _fake_render,
)
library.differentiable("instant_ngp_field", _setup_context, _backward)
library.once_differentiable("instant_ngp_field_backward", instead="build the field with fused=False for second derivatives")
