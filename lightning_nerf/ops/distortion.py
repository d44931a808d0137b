"""The distortion of weights along rays: how far apart the light of a ray lies."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_same_device, check_tensor, needs_grad
from lightning_nerf.ops import library
from lightning_nerf.ops.composite_reference import owners
from lightning_nerf.ops.library import Context, Inputs
from lightning_nerf.ops.segments import exclusive_sum
from lightning_nerf.ops.transforms import is_transformed

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def distortion(weights: Tensor, t_starts: Tensor, t_ends: Tensor, *, offsets: Tensor | None = None) -> Tensor:
    r"""Mean distance between two points of a ray, drawn by its weights, times the square of their sum.

    .. math:: \sum_{i,j} w_i w_j |m_i - m_j| + \tfrac13 \sum_i w_i^2 \delta_i

    for each ray, with the middles :math:`m_i` and lengths :math:`\delta_i` of its samples, in one pass over them. It is 0
    for a ray without samples or weights, and smallest where all weight lies in one short interval.

    Args:
        weights: [N], of all rays' samples in one list; or [..., n], n samples for each ray.
        t_starts: like ``weights``, rising along each ray, finite. In the unit in which distances are to be measured:
            mip-NeRF 360 takes places along the ray from 0 at near to 1 at far, which are even in 1 / t.
        t_ends: likewise.
        offsets: [R + 1] int32, CSR: ray r owns samples ``offsets[r]`` to ``offsets[r + 1]`` of the list. None: the last
            dimension of ``weights`` is one ray's.

    Returns:
        [R], or the leading dimensions of ``weights``; float32. Nothing is synchronized.

    Differentiable in ``weights``, once, in one pass too; samples behind ``offsets[R]`` have gradient 0, whatever they hold.
    Where t_starts or t_ends require a gradient, and under function transforms, :func:`reference` computes the same, in all
    three and any number of times, slower. A weight that is not finite spoils its own ray only.

    Raises:
        ValueError: a tensor has the wrong shape, dtype or device.

    >>> import torch
    >>> from lightning_nerf.ops.distortion import distortion
    >>> weights, edges = torch.tensor([[0.5, 0.0, 0.5]]), torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    >>> distortion(weights, edges[:, :-1], edges[:, 1:])  # 2 * 0.5 * 0.5 * 2 + (0.25 + 0.25) / 3
    tensor([1.1667])

    Source: Barron, Mildenhall, Verbin, Srinivasan, Hedman, "Mip-NeRF 360", CVPR 2022, equation 15; the form that takes one
    pass: Sun, Sun, Chen, "Improved direct voxel grid optimization for radiance fields reconstruction", arXiv 2022.
    """
    if offsets is None:
        if weights.ndim < 1:
            raise BadArgument("weights: expected shape [..., n], got []")
        rays, n = weights.shape[:-1], weights.shape[-1]
        shape: tuple[int | str, ...] = tuple(weights.shape)
        count = rays.numel() * n
        if count >= 2**31:
            raise BadArgument(f"weights: expected fewer than 2**31 samples, got {count}")
        csr = torch.arange(0, count + 1, max(n, 1), dtype=torch.int32, device=weights.device)
        csr = csr if n > 0 else csr.new_zeros(rays.numel() + 1)
    else:
        check_tensor("offsets", offsets, ("R + 1",), torch.int32)
        if len(offsets) == 0:
            raise BadArgument("offsets: expected shape [R + 1] with R >= 0, got [0]")
        rays, shape, csr = torch.Size([len(offsets) - 1]), ("N",), offsets.contiguous()
    check_tensor("weights", weights, shape, _FLOATS)
    for name, t in (("t_starts", t_starts), ("t_ends", t_ends)):
        check_tensor(name, t, tuple(weights.shape), torch.float32)
    check_same_device(weights=weights, t_starts=t_starts, t_ends=t_ends, offsets=offsets)
    by_reference = needs_grad(t_starts, t_ends) or is_transformed()
    op = reference if by_reference else torch.ops.lightning_nerf.distortion
    w, starts, ends = (each.reshape(-1).contiguous() for each in (weights.float(), t_starts, t_ends))
    return op(w, starts, ends, csr).view(rays)


def reference(weights: Tensor, t_starts: Tensor, t_ends: Tensor, offsets: Tensor) -> Tensor:
    n, n_rays = len(weights), len(offsets) - 1
    owner = owners(n, offsets)
    inside = owner < n_rays
    # Masked before all arithmetic, so that no derivative meets what the tail holds.
    w, start, end = (torch.where(inside, each, 0.0).double() for each in (weights, t_starts, t_ends))
    middle, length = (start + end) / 2, end - start
    ray = torch.where(inside, owner, 0)
    before = exclusive_sum(w, owner, offsets), exclusive_sum(w * middle, owner, offsets)
    each = w * (2 * (middle * before[0] - before[1]) + w * length / 3)
    return w.new_zeros(n_rays).index_add(0, ray, each).to(weights.dtype) if n_rays > 0 else weights.new_zeros(0)


def backward_reference(grad_losses: Tensor, weights: Tensor, t_starts: Tensor, t_ends: Tensor, offsets: Tensor) -> Tensor:
    def losses(weights: Tensor) -> Tensor:
        return reference(weights, t_starts, t_ends, offsets)

    # Not autograd.grad: below the dispatcher's autograd key it records nothing.
    return torch.func.vjp(losses, weights)[1](grad_losses)[0]


def _fake(weights: Tensor, t_starts: Tensor, t_ends: Tensor, offsets: Tensor) -> Tensor:
    return weights.new_empty(offsets.shape[0] - 1)


def _setup_context(ctx: Context, inputs: Inputs, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Context, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
    grad = torch.ops.lightning_nerf.distortion_backward(grad_losses.contiguous(), *ctx.saved_tensors)
    return grad, None, None, None


_ARGUMENTS = "Tensor weights, Tensor t_starts, Tensor t_ends, Tensor offsets"
library.define("distortion", f"({_ARGUMENTS}) -> Tensor", reference, _fake)
library.define(
    "distortion_backward",
    f"(Tensor grad_losses, {_ARGUMENTS}) -> Tensor",
    backward_reference,
    lambda grad_losses, weights, *_: torch.empty_like(weights),
)
library.differentiable("distortion", _setup_context, _backward)
library.once_differentiable("distortion_backward", "lightning_nerf.ops.distortion.reference is differentiable twice")
