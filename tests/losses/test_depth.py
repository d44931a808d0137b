from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nerf import DepthSupervision, PackedSamples, Placement, RayBatch, Rays, Render, Step
from lightning_nerf.types import FieldOutput


def step(rendered: Tensor, depth: Tensor | None, mask: Tensor | None = None, kept: list[bool] | None = None) -> Step:
    n = len(rendered)
    rays = Rays(torch.zeros(n, 3), torch.ones(n, 3), torch.zeros(n), torch.ones(n))
    none, whole = torch.empty(0), torch.zeros(0, dtype=torch.int32)
    are_kept = torch.ones(n, dtype=torch.bool) if kept is None else torch.tensor(kept)
    samples = PackedSamples(none, none, whole, torch.zeros(n + 1, dtype=torch.int32), are_kept)
    render = Render(torch.zeros(n, 3), torch.ones(n), rendered, torch.zeros(n, dtype=torch.int32))
    batch = RayBatch(rays, torch.zeros(n, 3), mask=mask, depth=depth)
    return Step(batch, torch.ones(3), Placement(samples), FieldOutput(none, none.view(0, 3)), render, logs={})


def test_it_is_the_mean_huber_loss_of_relative_errors_over_rays_of_known_depth() -> None:
    rendered = torch.tensor([2.1, 6.0, 7.0, 8.0, 9.0], requires_grad=True)
    depth = torch.tensor([2.0, 4.0, 0.0, 4.0, 4.0])
    mask = torch.tensor([True, True, True, False, True])
    given = step(rendered, depth, mask, [True, True, True, True, False])
    loss = DepthSupervision(delta=0.1)(given)
    expected = (0.5 * 0.05**2 + 0.1 * (0.5 - 0.05)) / 2
    torch.testing.assert_close(loss, torch.tensor(expected))
    assert int(given.logs["n_depths"]) == 2
    (grad,) = torch.autograd.grad(loss, rendered)
    torch.testing.assert_close(grad, torch.tensor([0.05 / 2 / 2, 0.1 / 4 / 2, 0.0, 0.0, 0.0]))


@pytest.mark.parametrize("depth", [torch.zeros(2), torch.empty(0)])
def test_it_is_zero_where_no_depth_is_known(depth: Tensor) -> None:
    rendered = torch.ones(len(depth), requires_grad=True)
    loss = DepthSupervision()(step(rendered, depth))
    assert float(loss.detach()) == 0
    assert not torch.autograd.grad(loss, rendered)[0].any()


def test_arguments_and_batches_are_checked() -> None:
    with pytest.raises(ValueError, match=r"delta: expected a number in \(0, inf\), got 0"):
        DepthSupervision(delta=0)
    with pytest.raises(ValueError, match="data: the loss 'depth_supervision' wants depths"):
        DepthSupervision()(step(torch.ones(2), None))
