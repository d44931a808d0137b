"""What estimators promise of the samples that they place, looked at before kernels rely on it."""

from __future__ import annotations

import torch

from lightning_nerf.checks import FLOATS, BadArgument, check_instance, check_tensor
from lightning_nerf.types import Evaluated, FieldOutput, PackedSamples, Placement, Round


def checked_placement(placement: object, n_rays: int, whose: str) -> Placement:
    """What an estimator's ``place`` said of R rays. Values are looked at on a CPU only: elsewhere that would synchronize.

    Indices that point outside of the rays or the samples would have kernels read memory that is not theirs.

    Raises:
        BadType, BadArgument: naming what breaks the promises of :class:`PackedSamples`.
    """
    check_instance(f"{whose}.place", placement, Placement)
    assert isinstance(placement, Placement)
    _check_samples(f"{whose}.place: samples", placement.samples, n_rays)
    check_instance(f"{whose}.place: rounds", placement.rounds, tuple)
    for i, each in enumerate(placement.rounds):
        name = f"{whose}.place: rounds[{i}]"
        check_instance(name, each, Round)
        _check_samples(f"{name}.samples", each.samples, n_rays)
        check_tensor(f"{name}.weights", each.weights, tuple(each.samples.t_starts.shape), FLOATS)
        check_instance(f"{name}.output", each.output, FieldOutput, type(None))
    check_instance(f"{whose}.place: evaluated", placement.evaluated, Evaluated, type(None))
    return placement


def _check_samples(name: str, samples: PackedSamples, n_rays: int) -> None:
    check_instance(name, samples, PackedSamples)
    check_tensor(f"{name}.t_starts", samples.t_starts, ("N",), torch.float32)
    n = len(samples.t_starts)
    check_tensor(f"{name}.t_ends", samples.t_ends, (n,), torch.float32)
    check_tensor(f"{name}.ray_indices", samples.ray_indices, (n,), torch.int32)
    check_tensor(f"{name}.offsets", samples.offsets, (n_rays + 1,), torch.int32)
    check_tensor(f"{name}.kept", samples.kept, (n_rays,), torch.bool)
    if samples.t_starts.device.type != "cpu" or torch.compiler.is_compiling():
        return
    offsets, rays = samples.offsets, samples.ray_indices
    if int(offsets[0]) != 0 or int(offsets[-1]) > n or bool((offsets.diff() < 0).any()):
        shown = [int(offsets.min()), int(offsets.max())]
        raise BadArgument(f"{name}.offsets: expected 0 at first, never falling, at most N = {n} at last, got {shown}")
    if n and n_rays and not 0 <= int(rays.min()) <= int(rays.max()) < n_rays:
        shown = [int(rays.min()), int(rays.max())]
        raise BadArgument(f"{name}.ray_indices: expected 0 to {n_rays - 1}, also in the tail, got {shown}")
