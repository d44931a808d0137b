"""Where packed samples are, what they look along, and when."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_same_device, check_tensor, needs_grad
from lightning_nerf.ops import library
from lightning_nerf.scene_box import BALLS, CONTRACTIONS, contract_unit
from lightning_nerf.types import PackedSamples, Rays

CONTRACTIONS_OF_POINTS = ("none", *BALLS)  # what kernels know; of another one positions are mapped op by op


def sample_points(
    rays: Rays, samples: PackedSamples, *, to_unit: Tensor | None = None, contraction: str = "none"
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Positions at the samples' midpoints, directions, and times where the rays have them.

    .. math:: x_i = o_{r(i)} + \\tfrac{1}{2} (t^{start}_i + t^{end}_i)\\, d_{r(i)}

    Directions are the rays' own, not normalized. In the tail, t = 0 and the ray is ray 0: finite if that ray is. With no
    rays at all, everything is 0. Indices are not checked.

    With ``to_unit`` = (a, b) positions are :math:`a x_i + b` instead, coordinate by coordinate, and with a ``contraction``
    all of space is in the unit cube, see :class:`~lightning_nerf.SceneBox`.

    The kernels have no derivative. Where the rays' origins, directions or times (or t or ``to_unit``) require a gradient,
    as for cameras that are learned, :func:`reference` computes the same, differentiable any number of times and slower.

    Args:
        rays: R rays, float32.
        samples: N samples of them.
        to_unit: [2, 3] float32, factor and summand, such as those that make the scene's box the unit cube.
        contraction: "none", or "l2" or "linf" behind ``to_unit``.

    Returns:
        positions [N, 3], directions [N, 3], times [N] or None.
    """
    origins, directions, times = rays.origins, rays.directions, rays.times
    t_starts, t_ends, ray_indices = samples[:3]
    check_tensor("rays.origins", origins, ("R", 3), torch.float32)
    n_rays = origins.shape[0]
    check_tensor("rays.directions", directions, (n_rays, 3), torch.float32)
    if times is not None:
        check_tensor("rays.times", times, (n_rays,), torch.float32)
    check_tensor("samples.t_starts", t_starts, ("N",), torch.float32)
    n = t_starts.shape[0]
    check_tensor("samples.t_ends", t_ends, (n,), torch.float32)
    check_tensor("samples.ray_indices", ray_indices, (n,), torch.int32)
    if to_unit is not None:
        check_tensor("to_unit", to_unit, (2, 3), torch.float32)
    if contraction not in CONTRACTIONS_OF_POINTS:
        raise BadArgument(f"contraction: expected one of {', '.join(CONTRACTIONS_OF_POINTS)}, got {contraction!r}")
    if to_unit is None and contraction != "none":
        raise BadArgument(f"contraction: expected 'none' without to_unit, got {contraction!r}")
    check_same_device(
        **{"rays.origins": origins, "rays.directions": directions, "rays.times": times, "samples.t_starts": t_starts},
        **{"samples.t_ends": t_ends, "samples.ray_indices": ray_indices, "to_unit": to_unit},
    )
    traced = needs_grad(origins, directions, times, t_starts, t_ends, to_unit)
    positions, sample_directions, sample_times = (reference if traced else torch.ops.lightning_nerf.sample_points)(
        origins.contiguous(),
        directions.contiguous(),
        None if times is None else times.contiguous(),
        t_starts.contiguous(),
        t_ends.contiguous(),
        ray_indices.contiguous(),
        None if to_unit is None else to_unit.contiguous(),
        CONTRACTIONS.index(contraction),
    )
    return positions, sample_directions, None if times is None else sample_times


def per_sample(values: Tensor, samples: PackedSamples) -> Tensor:
    """Each sample's entry of values [R, ...]: [N, ...]. In the tail ray 0's; 0 where there are no rays."""
    if len(values) == 0:
        return values.new_zeros(len(samples.ray_indices), *values.shape[1:])
    return values[samples.ray_indices]


def reference(
    origins: Tensor,
    directions: Tensor,
    times: Tensor | None,
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor,
    to_unit: Tensor | None = None,
    contraction: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    n = t_starts.shape[0]
    if origins.shape[0] == 0:  # a capacity without rays: there is no ray 0 to read
        positions = origins.new_zeros(n, 3) if to_unit is None else to_unit[1].repeat(n, 1)
        return (
            contract_unit(positions, CONTRACTIONS[contraction]),
            origins.new_zeros(n, 3),
            origins.new_zeros(0 if times is None else n),
        )
    sample_directions = directions.index_select(0, ray_indices)
    middle = (t_starts + t_ends) * 0.5
    positions = origins.index_select(0, ray_indices).addcmul(sample_directions, middle[:, None])
    if to_unit is not None:
        positions = torch.addcmul(to_unit[1], positions, to_unit[0])
    positions = contract_unit(positions, CONTRACTIONS[contraction])
    return positions, sample_directions, origins.new_empty(0) if times is None else times.index_select(0, ray_indices)


def fake(
    origins: Tensor, directions: Tensor, times: Tensor | None, t_starts: Tensor, *_: Tensor | int | None
) -> tuple[Tensor, Tensor, Tensor]:
    n = t_starts.shape[0]
    return origins.new_empty((n, 3)), origins.new_empty((n, 3)), origins.new_empty(0 if times is None else n)


library.define(
    "sample_points",
    "(Tensor origins, Tensor directions, Tensor? times, Tensor t_starts, Tensor t_ends, Tensor ray_indices, "
    "Tensor? to_unit, int contraction=0) -> (Tensor positions, Tensor sample_directions, Tensor sample_times)",
    reference,
    fake,
)
