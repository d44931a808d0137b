"""How composite may be called, and what a call costs."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.composite import composite
from tests.ops.harness import rand, run_with_grad, to
from tests.ops.test_composite import COUNTS, DIFFERENTIABLE, OP, full, make


def test_views_are_accepted() -> None:
    densities, channels, t_starts, t_ends, offsets = args = make(COUNTS["ragged"], 4)
    spread = [torch.stack([a, a], 1)[:, 0] for a in (densities, t_starts, t_ends)]
    out = composite(spread[0], channels.T.contiguous().T, spread[1], spread[2], torch.stack([offsets, offsets], 1)[:, 0])
    for a, b in zip(out[:4], composite(*args)[:4], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    args = make([(11 * i) % 23 for i in range(400)])
    cotangents = [rand(400, 3, seed=1), rand(400, seed=2), rand(400, seed=3), *[None] * 4]

    def run(threads: int) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            outputs, grads = run_with_grad(OP, full(args, wanted=False), DIFFERENTIABLE, cotangents)
        finally:
            torch.set_num_threads(before)
        return [*outputs, *grads]

    for a, b in zip(run(1), run(2), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_scripted_function_may_call_the_op() -> None:
    def opacity(densities: Tensor, channels: Tensor, t_starts: Tensor, t_ends: Tensor, offsets: Tensor) -> Tensor:
        return torch.ops.lightning_nerf.composite(
            densities, channels, t_starts, t_ends, offsets, 0.0, False, False, False, False, False, None
        )[1]

    args = make([3, 4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates scripting
        scripted = torch.jit.script(opacity)
    torch.testing.assert_close(scripted(*args), composite(*args).opacity, rtol=0, atol=0)


@pytest.mark.gpu
def test_without_gradients_nothing_of_sample_size_is_allocated() -> None:
    args = to("cuda", make([20_000] * 50))
    n_bytes = args[0].numel() * 4
    composite(*args)
    for wanted, low, high in [(False, 0.0, 0.1), (True, 1.0, 1.1)]:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        composite(*args, return_weights=wanted)
        assert low * n_bytes <= torch.cuda.max_memory_allocated() - before <= high * n_bytes
    densities = args[0].requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = composite(densities, *args[1:])  # nor is anything of that size kept for backward
    assert torch.cuda.max_memory_allocated() - before <= 0.1 * n_bytes
    del out
