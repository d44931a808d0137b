"""One harness for every op: the installed kernel against the op's pure-torch reference, forward and backward.

A test module names its op, its reference and a table of cases, and calls :func:`check_op` for each case and device. Where
no kernel is installed, the op *is* its reference and the comparison is trivially true; CI builds the library first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform float32 on the CPU: the same inputs for every device."""
    return torch.rand(shape, generator=generator(seed)) * (high - low) + low


def ragged_offsets(counts: Sequence[int]) -> Tensor:
    """CSR offsets [R + 1] int32 of rays with the given sample counts."""
    return torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)


def to(device: str, args: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(a.to(device) if isinstance(a, Tensor) else a for a in args)


def poison_tail(value: Tensor, count: int, *, extra: int) -> Tensor:
    """``value`` [N, ...] with its entries from ``count`` on, and ``extra`` more, replaced by NaN."""
    tail = value.new_full((extra, *value.shape[1:]), float("nan"))
    poisoned = torch.cat([value.detach().clone(), tail])
    poisoned[count:] = float("nan")
    return poisoned


def tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [o for o in output if isinstance(o, Tensor)]


def run_with_grad(
    function: Callable[..., Any], args: Sequence[Any], differentiable: Sequence[int], cotangents: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradients of the arguments at ``differentiable`` for the given output gradients (None: missing)."""
    args = list(args)
    for i in differentiable:
        args[i] = args[i].detach().clone().requires_grad_()
    outputs = tensors(function(*args))
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if c is not None]
    inputs = [args[i] for i in differentiable]
    grads = torch.autograd.grad([o for o, _ in pairs], inputs, [c for _, c in pairs], allow_unused=True)
    return outputs, [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, grads, strict=True)]


def check_op(
    name: str,
    reference: Callable[..., Any],
    args: Sequence[Any],
    *,
    device: str,
    differentiable: Sequence[int] = (),
    rtol: float,
    atol: float,
    grad_rtol: float | None = None,
    grad_atol: float | None = None,
    opcheck: bool = True,
) -> None:
    """Kernel against reference on ``device``: outputs, gradients for random cotangents and for each missing one, opcheck.

    Tolerances must follow from the dtype and the number of terms summed; integer and bool outputs must be equal.
    """
    args = to(device, args)
    op = getattr(torch.ops.lightning_nerf, name)
    expected = tensors(reference(*args))
    actual = tensors(op(*args))
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        exact = not e.is_floating_point()
        torch.testing.assert_close(a, e, rtol=0 if exact else rtol, atol=0 if exact else atol)

    if differentiable:
        grad_rtol, grad_atol = (rtol if grad_rtol is None else grad_rtol), (atol if grad_atol is None else grad_atol)
        smooth = [o.requires_grad for o in _outputs_with_grad(reference, args, differentiable)]
        cotangents = [
            rand(*e.shape, seed=100 + i, low=-1.0).to(e) if s else None
            for i, (e, s) in enumerate(zip(expected, smooth, strict=True))
        ]
        present = [i for i, c in enumerate(cotangents) if c is not None]
        single = [[c if i == only else None for i, c in enumerate(cotangents)] for only in present if len(present) > 1]
        for pattern in [cotangents, *single]:
            _, kernel = run_with_grad(op, args, differentiable, pattern)
            _, truth = run_with_grad(reference, args, differentiable, pattern)
            for k, t in zip(kernel, truth, strict=True):
                torch.testing.assert_close(k, t, rtol=grad_rtol, atol=grad_atol)
    if opcheck:
        checked = [a.detach().clone().requires_grad_() if i in differentiable else a for i, a in enumerate(args)]
        torch.library.opcheck(op.default, tuple(checked))


def _outputs_with_grad(reference: Callable[..., Any], args: Sequence[Any], differentiable: Sequence[int]) -> list[Tensor]:
    args = [a.detach().clone().requires_grad_() if i in differentiable else a for i, a in enumerate(args)]
    return tensors(reference(*args))


def assert_detected(check: Callable[[], None]) -> None:
    """A mutated reference must make ``check`` fail: otherwise the test could not tell right from wrong."""
    with pytest.raises(AssertionError):
        check()
