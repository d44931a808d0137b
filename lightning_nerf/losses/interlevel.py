"""Losses by which proposals learn where the field finds light."""

from __future__ import annotations

from torch import Tensor

from lightning_nerf.checks import BadArgument, check_number
from lightning_nerf.losses.base import Loss
from lightning_nerf.ops.interlevel import interlevel
from lightning_nerf.ops.rounds import round_counting
from lightning_nerf.types import Step


class Interlevel(Loss):
    r"""What the field's weights exceed those of earlier rounds by: rounds learn to cover all places where light comes from.

    .. math:: \frac1R \sum_r \sum_i \frac{\max(0, w_i - b_i)^2}{w_i + \epsilon}

    per earlier round, added up over rounds. :math:`w_i` are the weights of the last round's samples, without gradient, and
    the bound :math:`b_i` is the sum of the round's weights over all of its intervals that overlap sample i. With
    ``pulse_width`` the last round's histogram is blurred first by a box of that width and then compared on the round's own
    intervals, which moves a proposal smoothly as the light moves.

    >>> from lightning_nerf import InstantNGPField, Interlevel, NeRFModule, Photometric, Proposal, ProposalField
    >>> proposals = Proposal([ProposalField(n_levels=2, log2_table_size=8, max_resolution=32)], counts=[64], n_fine=16)
    >>> field = InstantNGPField(n_levels=4, log2_table_size=12, max_resolution=64)
    >>> module = NeRFModule(field, proposals, losses=[Photometric(), Interlevel()])
    >>> [loss.name for loss in module.losses]
    ['photometric', 'interlevel']

    Args:
        pulse_width: None: the histogram loss of mip-NeRF 360. Else half of the box's width, of each round or of all, as a
            share of the way from near to far in the estimator's spacing, > 0: the spline of Zip-NeRF, which takes 0.03 and
            0.003.
        weight, name: see :class:`Loss`.

    Differentiable in the fields of earlier rounds.

    Raises:
        BadArgument: in a step, where the estimator makes no rounds of equally many samples, as :class:`Proposal` does.

    Source: Barron et al., "Mip-NeRF 360", CVPR 2022, equation 13; "Zip-NeRF", ICCV 2023, section 3 of the supplement.
    """

    needs_weights = True

    def __init__(
        self, pulse_width: float | list[float] | None = None, weight: float = 1.0, name: str | None = None
    ) -> None:
        super().__init__(weight, name)
        widths = pulse_width if isinstance(pulse_width, (list, tuple)) else [pulse_width]
        for i, width in enumerate(widths):
            if width is not None:
                check_number(f"pulse_width[{i}]" if len(widths) > 1 else "pulse_width", width, "(0, inf)")
        self.pulse_width = pulse_width

    def forward(self, step: Step) -> Tensor:
        """See :meth:`Loss.forward`."""
        last, rounds, weights = step.placement, step.placement.rounds, step.render.weights
        if weights is None:
            raise BadArgument(f"step.render.weights: the loss {self.name!r} needs them, got None")
        if last.edges is None or not rounds or any(each.edges is None for each in rounds):
            raise BadArgument(
                f"estimator: the loss {self.name!r} needs rounds of equally many samples on each ray, as those of Proposal"
            )
        k, n = len(last.edges), last.edges.shape[1] - 1
        fine = weights.detach()[: k * n].view(k, n)
        counts = step.counts
        counting = round_counting(counts, last.samples.ray_indices, last.samples.offsets, k, n)
        widths = self.pulse_width if isinstance(self.pulse_width, (list, tuple)) else [self.pulse_width] * len(rounds)
        if len(widths) != len(rounds):
            raise BadArgument(
                f"pulse_width: expected one number, or one of each of {len(rounds)} rounds, got {len(widths)}"
            )
        total = fine.new_zeros(())
        for each, width in zip(rounds, widths, strict=True):
            coarse_edges = each.edges
            assert coarse_edges is not None
            coarse = each.weights.view(k, coarse_edges.shape[1] - 1)
            total = total + interlevel(last.edges, fine, coarse_edges, coarse, counting, width=width).sum()
        return total / counts.sum().clamp(min=1)
