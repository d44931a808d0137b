"""How far the weights of one histogram along a ray exceed those of a coarser one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_nerf.checks import check_number, check_same_device, check_tensor
from lightning_nerf.ops import library
from lightning_nerf.ops.library import Context, Inputs
from lightning_nerf.ops.transforms import is_transformed

_EPS = 1e-7  # added to weights that are divided by


def interlevel(
    edges: Tensor,
    weights: Tensor,
    coarse_edges: Tensor,
    coarse_weights: Tensor,
    counting: Tensor,
    *,
    width: float | None = None,
) -> Tensor:
    r"""What each row's weights exceed those of a coarser histogram by, which learns from it to cover them.

    Without width, against the sum :math:`b_i` of the coarse weights over all intervals that overlap interval i:

    .. math:: \sum_i \frac{\max(0, w_i - b_i)^2}{w_i + \epsilon}

    With width, the histogram of weights is convolved with a box of twice that width and summed up over each coarse
    interval, to :math:`f_j`, which is compared with the coarse weight :math:`c_j` there, the divisor being a constant:

    .. math:: \sum_j \frac{\max(0, f_j - c_j)^2}{c_j + \epsilon}

    Args:
        edges: [K, n + 1], rising in each row.
        weights: [K, n], between them. One on an interval without length counts as 0 in the blurred histogram.
        coarse_edges: [K, m + 1], rising, in the same unit.
        coarse_weights: [K, m].
        counting: [K] bool; the other rows have 0, whatever they hold.
        width: None, or > 0, in the unit of the edges, and not far below a millionth of a row's length.

    Returns:
        [K] float32. All is computed in float64, since a blurred weight of 1e-7 is a difference of sums near 1. Nothing is
        synchronized.

    Differentiable in ``coarse_weights`` alone, without a backward pass over the rows: the forward pass keeps the slope of
    each coarse weight. Under function transforms, and for second derivatives, :func:`reference` computes the same, slower.
    A number that is not finite spoils its own row only.

    Raises:
        ValueError: a tensor has the wrong shape, dtype or device, or width is out of range.

    >>> import torch
    >>> from lightning_nerf.ops.interlevel import interlevel
    >>> light, counting = (torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.1, 0.5]])), torch.tensor([True])
    >>> proposal = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.5, 0.25]])
    >>> interlevel(*light, *proposal, counting)  # (0.5 - 0.25)^2 / 0.5
    tensor([0.1250])

    Source: Barron et al., "Mip-NeRF 360", CVPR 2022, equation 13; "Zip-NeRF", ICCV 2023, section 3 of the supplement.
    """
    k, n, m = len(edges), edges.shape[-1] - 1, coarse_edges.shape[-1] - 1
    check_tensor("edges", edges, ("K", "n + 1"), torch.float32)
    check_tensor("weights", weights, (k, n), torch.float32)
    check_tensor("coarse_edges", coarse_edges, (k, "m + 1"), torch.float32)
    check_tensor("coarse_weights", coarse_weights, (k, m), torch.float32)
    check_tensor("counting", counting, (k,), torch.bool)
    if width is not None:
        check_number("width", width, "(0, inf)")
    check_same_device(
        edges=edges, weights=weights, coarse_edges=coarse_edges, coarse_weights=coarse_weights, counting=counting
    )
    op = reference if is_transformed() else torch.ops.lightning_nerf.interlevel
    edges, weights, coarse_edges = (each.detach().contiguous() for each in (edges, weights, coarse_edges))
    radius = 0.0 if width is None else float(width)
    return op(edges, weights, coarse_edges, coarse_weights.contiguous(), counting.contiguous(), radius)[0]


def reference(
    edges: Tensor, weights: Tensor, coarse_edges: Tensor, coarse_weights: Tensor, counting: Tensor, width: float
) -> tuple[Tensor, Tensor]:
    """The excess [K], and its derivatives [K, m] in the coarse weights, without derivatives of their own."""
    column = counting[:, None]
    # Masked before all arithmetic, so that no derivative meets what an unused row holds.
    edges, weights, coarse_edges, coarse = (
        torch.where(column, each, 0.0).double()
        for each in (edges.detach(), weights.detach(), coarse_edges.detach(), coarse_weights)
    )
    if width > 0:
        over, divisor = resampled(*blurred(edges, weights, width), coarse_edges) - coarse, coarse.detach() + _EPS
        slopes = -2 * over.detach().clamp(min=0) / divisor
    else:
        over, divisor = weights - outer_bound(edges, coarse_edges, coarse), weights + _EPS
        slopes = outer_bound(coarse_edges, edges, -2 * over.detach().clamp(min=0) / divisor)
    return (over.clamp(min=0).square() / divisor).sum(1).float(), slopes.float()


def outer_bound(edges: Tensor, coarse_edges: Tensor, coarse: Tensor) -> Tensor:
    """The sums [K, n] of coarse weights [K, m] over the intervals that overlap each of n; differentiable in the weights.

    >>> import torch
    >>> from lightning_nerf.ops.interlevel import outer_bound
    >>> thirds, halves = torch.tensor([[0, 1 / 3, 2 / 3, 1]]), torch.tensor([[0, 0.5, 1]])
    >>> outer_bound(halves, thirds, torch.tensor([[1.0, 2.0, 4.0]]))
    tensor([[3., 6.]])
    """
    m = coarse.shape[1]
    sums = pad(coarse.cumsum(1), (1, 0))
    first = (torch.searchsorted(coarse_edges, edges[:, :-1].contiguous(), right=True) - 1).clamp(0, m)
    last = torch.searchsorted(coarse_edges, edges[:, 1:].contiguous(), right=False).clamp(0, m)
    return sums.gather(1, last.maximum(first)) - sums.gather(1, first)


def blurred(edges: Tensor, weights: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The histogram of weights [K, n] between edges [K, n + 1], convolved with a box of half-width ``radius``.

    Returns:
        Knots [K, 2 n + 2], rising, and the density at them, linear in between; float64. The density's integral is the sum
        of the weights.
    """
    edges = edges.double()  # before all: rounded to float32, a knot of thin light would be off by much of its interval
    lengths = edges.diff(dim=1)
    heights = torch.where(lengths > 0, weights / lengths.clamp(min=1e-300), 0.0)
    jumps = pad(heights, (1, 1)).diff(dim=1) / (2 * radius)  # of the density's slope at each edge
    knots, order = torch.cat([edges - radius, edges + radius], 1).sort(1)
    slopes = torch.cat([jumps, -jumps], 1).gather(1, order).cumsum(1)
    rises = slopes[:, :-1] * knots.diff(dim=1)
    return knots, pad(rises.cumsum(1), (1, 0)).clamp(min=0)


def resampled(knots: Tensor, density: Tensor, edges: Tensor) -> Tensor:
    """Integrals [K, m] over the intervals of edges [K, m + 1], in their dtype, of a density linear between knots."""
    areas = 0.5 * (density[:, 1:] + density[:, :-1]) * knots.diff(dim=1)
    sums = pad(areas.cumsum(1), (1, 0))
    at = edges.double().clamp(knots[:, :1], knots[:, -1:])
    i = (torch.searchsorted(knots, at, right=True) - 1).clamp(0, knots.shape[1] - 2)
    left, right = knots.gather(1, i), knots.gather(1, i + 1)
    low, high = density.gather(1, i), density.gather(1, i + 1)
    share = torch.where(right > left, (at - left) / (right - left).clamp(min=1e-300), 0.0)
    upto = sums.gather(1, i) + (at - left) * (low + 0.5 * share * (high - low))
    return upto.diff(dim=1).to(edges.dtype)


def _fake(
    edges: Tensor, weights: Tensor, coarse_edges: Tensor, coarse_weights: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    return edges.new_empty(edges.shape[0]), torch.empty_like(coarse_weights)


def _setup_context(ctx: Context, inputs: Inputs, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.width = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Context, grad_excess: Tensor | None, _: object) -> tuple[Tensor | None, ...]:
    grad = None
    if grad_excess is not None:
        edges, weights, coarse_edges, coarse, counting, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: a gradient of this gradient may be wanted
            excess, _ = reference(edges, weights, coarse_edges, coarse, counting, ctx.width)
            (grad,) = torch.autograd.grad(excess, coarse, grad_excess, create_graph=True)
        else:
            grad = grad_excess[:, None] * slopes
    return None, None, None, grad, None, None


library.define(
    "interlevel",
    "(Tensor edges, Tensor weights, Tensor coarse_edges, Tensor coarse_weights, Tensor counting, float width) "
    "-> (Tensor excess, Tensor slopes)",
    reference,
    _fake,
)
library.differentiable("interlevel", _setup_context, _backward)
