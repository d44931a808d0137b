"""The loss that keeps space empty, against values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_nerf.checks import BadArgument
from lightning_nerf.fields import RadianceField
from lightning_nerf.losses import Sparsity
from lightning_nerf.ops.random import make_key
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import FieldOutput, PackedSamples, Placement, RayBatch, Rays, Render, Step

BOX = SceneBox(torch.tensor([[-3.0, -3, -3], [3, 3, 3]]))


class Ramp(RadianceField):
    """Density grows with x, which is t along the rays of :func:`one_step`."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(2.0))

    def density(self, positions: Tensor) -> Tensor:
        return self.slope * positions[:, 0].clamp(min=0)

    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:
        return FieldOutput(self.density(positions), positions.sigmoid())


def one_step(field: RadianceField, n: int, kept: Tensor | None = None, far: float = 2.0, step: int = 1) -> Step:
    """n rays along x from near 0 to ``far``, without samples: the loss looks behind surfaces, too."""
    field.bind(BOX)
    rays = Rays(torch.zeros(n, 3), torch.tensor([[1.0, 0, 0]]).expand(n, 3), torch.zeros(n), torch.full((n,), far))
    nothing, kept = torch.zeros(0), torch.ones(n, dtype=torch.bool) if kept is None else kept
    offsets = torch.zeros(n + 1, dtype=torch.int32)
    samples = PackedSamples(nothing, nothing, nothing.int(), offsets, kept)
    output = FieldOutput(nothing, torch.zeros(0, 3))
    render = Render(torch.rand(n, 3), torch.rand(n), torch.rand(n), torch.zeros(n).int())
    batch = RayBatch(rays, torch.rand(n, 3))
    return Step(batch, torch.ones(3), Placement(samples), output, render, logs={}, field=field, key=make_key(1, step=step))


def test_it_is_the_mean_opacity_of_a_part_of_the_ray() -> None:
    n, far, slope = 40_000, 2.0, 2.0
    value = Sparsity(n_points=n)(one_step(Ramp(), n, far=far))
    # The mean over t in [0, far] of 1 - exp(-a t), a = slope * far / 128.
    a = slope * far / 128
    expected = 1 - (1 - math.exp(-a * far)) / (a * far)
    spread = a * far / 12**0.5 / n**0.5  # of the mean of n uniform numbers
    assert abs(float(value.detach()) - expected) < 5 * spread


def test_only_rays_that_count_and_the_first_ones_are_looked_at() -> None:
    kept = torch.tensor([True, False, True, True])
    some = Sparsity(n_points=3)(one_step(Ramp(), 4, kept))
    alone = [float(Sparsity(n_points=n)(one_step(Ramp(), 4)).detach()) for n in (1, 2, 3)]
    first, second, third = alone[0], 2 * alone[1] - alone[0], 3 * alone[2] - 2 * alone[1]
    assert second > 0
    assert float(some.detach()) == pytest.approx((first + third) / 2, rel=1e-5)


@pytest.mark.parametrize("n", [0, 3])
def test_without_a_ray_that_counts_it_is_zero_and_so_is_its_gradient(n: int) -> None:
    field = Ramp()
    value = Sparsity()(one_step(field, n, torch.zeros(n, dtype=torch.bool)))
    (gradient,) = torch.autograd.grad(value, field.slope)
    assert float(value.detach()) == float(gradient) == 0


def test_infinite_rays_of_inactive_rays_spread_no_nan() -> None:
    step = one_step(Ramp(), 3)
    rays = step.batch.rays._replace(near=torch.tensor([0.0, float("inf"), 5.0]), far=torch.tensor([2.0, float("inf"), 1.0]))
    assert Sparsity()(step._replace(batch=step.batch._replace(rays=rays))).isfinite()


def test_descent_makes_the_field_thinner_and_steps_draw_other_points() -> None:
    field = Ramp()
    value = Sparsity()(one_step(field, 50))
    (gradient,) = torch.autograd.grad(value, field.slope)
    assert gradient > 0
    assert float(value.detach()) != float(Sparsity()(one_step(field, 50, step=2)).detach())


def test_a_step_without_a_field_is_refused() -> None:
    with pytest.raises(BadArgument, match=r"step.field, step.key: the loss 'sparsity' needs both"):
        Sparsity()(one_step(Ramp(), 2)._replace(field=None))
