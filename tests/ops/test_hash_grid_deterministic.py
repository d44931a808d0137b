"""The table's gradient, summed to the same bits in every run."""

from __future__ import annotations

import pytest
import torch

from lightning_nerf.ops.hash_grid import hash_grid, reference
from tests.ops.harness import DEVICES, rand
from tests.ops.test_hash_grid import EPS, make


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dims", "features"), [(2, 1), (3, 2), (3, 4), (4, 8)])
def test_deterministic_sums(device: str, dims: int, features: int) -> None:
    n = 20_000 if device == "cuda" else 1000
    x, table, levels = (a.to(device) for a in make(dims, features, n))
    cotangent = (rand(n, 5 * features, seed=5, low=-1.0) * 10 ** rand(n, 1, seed=6, low=-6.0, high=6.0)).to(device)
    table.requires_grad_()
    grads = []
    for _ in range(3):
        out = hash_grid(x, table, levels, deterministic=True)
        grads.append(torch.autograd.grad(out, table, cotangent)[0])
    torch.use_deterministic_algorithms(True)
    try:
        out = hash_grid(x, table, levels)
    finally:
        torch.use_deterministic_algorithms(False)
    grads.append(torch.autograd.grad(out, table, cotangent)[0])
    for grad in grads[1:]:
        assert torch.equal(grads[0], grad)
    expected = torch.autograd.grad(reference(x, table.double(), levels), table, cotangent.double())[0]
    # Eight samples are summed in float32 at a time.
    torch.testing.assert_close(grads[0], expected, rtol=32 * EPS, atol=32 * EPS * float(cotangent.abs().max()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_deterministic_sums_do_not_hide_what_is_not_finite(device: str, bad: float) -> None:
    x, table, levels = (a.to(device) for a in make(3, 2, 100))
    backward = torch.ops.lightning_nerf.hash_grid_backward
    grad = torch.zeros(100, 10, device=device)
    assert not backward(grad, x, table, levels, None, False, True, True)[1].any()
    grad[50, 3] = bad
    assert not backward(grad, x, table, levels, None, False, True, True)[1].isfinite().all()
    tiny = torch.full_like(grad, 1e-37)
    total = backward(tiny, x, table, levels, None, False, True, True)[1].double().sum().item()
    torch.testing.assert_close(total, 1e-37 * 1000, rtol=1e-4, atol=0)
