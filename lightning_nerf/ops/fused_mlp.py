"""A small perceptron in one kernel: matrices and activations of 16 rows at a time never leave the chip.

Hidden layers of one width, ReLU between layers, no biases. Operands of every product are rounded to float16 or bfloat16,
sums are float32. CUDA kernels from compute capability 8.0 on; elsewhere the reference.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_same_device, check_tensor
from lightning_nerf.ops import library
from lightning_nerf.ops.library import Context, Inputs

WIDTHS = (16, 32, 64, 128)
MAX_HIDDEN_LAYERS = 4
MAX_ENDS = 128  # inputs and outputs
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def fused_mlp(x: Tensor, weights: Sequence[Tensor], *, dtype: torch.dtype) -> Tensor:
    """Outputs [N, O] in ``dtype`` of N inputs: ``W_k relu(... relu(W_1 x))``.

    As ``torch.autocast`` runs these layers: x, the weights and what leaves a layer are rounded to ``dtype``, and so are the
    gradients of what leaves a layer. The gradients of x and of the weights are rounded once, to the dtypes of these.

    Args:
        x: [N, I] float32, float16 or bfloat16, 1 <= I <= 128.
        weights: two to five float32 matrices [outputs, inputs]: [W, I], then any [W, W], then [O, W], 1 <= O <= 128. The
            hidden width W is 16, 32, 64 or 128.
        dtype: torch.float16 or torch.bfloat16.

    Differentiable once in x and weights, with sums in an order that depends on N and the GPU alone. Nothing but x is kept
    for the backward pass, which needs 4 W bytes for each row and hidden layer while it runs.

    Source: Mueller, Rousselle, Novak, Keller, "Real-time neural radiance caching for path tracing", SIGGRAPH 2021,
    section 5.
    """
    check_tensor("x", x, ("N", "I"), FLOATS)
    if not 2 <= len(weights) <= MAX_HIDDEN_LAYERS + 1:
        raise BadArgument(f"weights: expected 2 to {MAX_HIDDEN_LAYERS + 1} matrices, got {len(weights)}")
    width, last = weights[0].shape[0], len(weights) - 1
    for i, w in enumerate(weights):
        shape = ("O" if i == last else width, x.shape[1] if i == 0 else width)
        check_tensor(f"weights[{i}]", w, shape, torch.float32)
    outputs = weights[last].shape[0]
    if width not in WIDTHS:
        raise BadArgument(f"weights[0]: expected a hidden width of {', '.join(map(str, WIDTHS))}, got {width}")
    if not (1 <= x.shape[1] <= MAX_ENDS and 1 <= outputs <= MAX_ENDS):
        raise BadArgument(f"expected 1 to {MAX_ENDS} inputs and outputs, got {x.shape[1]} and {outputs}")
    if dtype not in (torch.float16, torch.bfloat16):
        raise BadArgument(f"dtype: expected torch.float16 or torch.bfloat16, got {dtype}")
    check_same_device(x=x, **{f"weights[{i}]": w for i, w in enumerate(weights)})
    five = [w.contiguous() for w in weights] + [None] * (MAX_HIDDEN_LAYERS - last)
    return torch.ops.lightning_nerf.fused_mlp(x.contiguous(), *five, dtype)


def has_kernel(device: torch.device, n_inputs: int, width: int, hidden_layers: int, n_outputs: int) -> bool:
    """Is there a kernel for a perceptron of this shape on this device?"""
    if not (
        width in WIDTHS
        and 1 <= hidden_layers <= MAX_HIDDEN_LAYERS
        and 1 <= n_inputs <= MAX_ENDS
        and 1 <= n_outputs <= MAX_ENDS
    ):
        return False
    # Rows of 16-bit numbers, padded by eight; the first layer's in pieces of 16 columns.
    first = (n_inputs + 15) // 16 * width * (16 + 8)
    rest = ((hidden_layers - 1) * width + (n_outputs + 15) // 16 * 16) * (width + 8)
    return device.type == "cuda" and 2 * (first + rest) <= _shared_memory(device.index or 0)


@functools.cache
def _shared_memory(device: int) -> int:
    """Bytes that a block may have on this GPU; 0 where no kernel runs."""
    if not library.has_kernel("fused_mlp", "CUDA"):
        return 0
    properties = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin if properties.major >= 8 else 0


# -- references ----------------------------------------------------------------------------------------------------------


def reference(
    x: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    weight3: Tensor | None,
    weight4: Tensor | None,
    weight5: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    wide = torch.promote_types(torch.promote_types(x.dtype, weight1.dtype), torch.float32)
    y = _rounded(x.to(wide), dtype)
    for i, weight in enumerate(w for w in (weight1, weight2, weight3, weight4, weight5) if w is not None):
        y = y if i == 0 else y.to(wide).relu()
        y = (y @ _rounded(weight.to(wide), dtype).T).to(dtype)
    return y


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to ``dtype``, in the dtype of x; its gradient is not."""
    return x + (x.to(dtype).to(x.dtype) - x).detach()


def reference_backward(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    weight3: Tensor | None,
    weight4: Tensor | None,
    weight5: Tensor | None,
    dtype: torch.dtype,
    for_input: bool,
    for_weights: bool,
) -> tuple[Tensor, Tensor]:
    weights = [w for w in (weight1, weight2, weight3, weight4, weight5) if w is not None]
    rest: list[Any] = [*[None] * (MAX_HIDDEN_LAYERS + 1 - len(weights)), dtype]
    # Not autograd.grad: below the dispatcher's autograd key it records nothing.
    pullback = torch.func.vjp(lambda x, *weights: reference(x, *weights, *rest), x, *weights)[1]
    grad_x, *grads = pullback(grad.to(dtype))
    return (
        grad_x if for_input else x.new_empty(0),
        torch.cat([g.flatten() for g in grads]) if for_weights else weight1.new_empty(0),
    )


# -- derivative ----------------------------------------------------------------------------------------------------------


def _setup_context(ctx: Context, inputs: Inputs, output: Tensor) -> None:
    *tensors, dtype = inputs
    ctx.save_for_backward(*tensors)
    ctx.dtype = dtype


def _backward(ctx: Context, grad: Tensor | None) -> Inputs:
    if grad is None:
        return (None,) * 7
    x, *weights = ctx.saved_tensors
    for_input, for_weights = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:6])
    grad_x, flat = torch.ops.lightning_nerf.fused_mlp_backward(
        grad.contiguous(), x, *weights, ctx.dtype, for_input, for_weights
    )
    grads: list[Tensor | None] = [None] * 5
    if for_weights:
        given = [w for w in weights if w is not None]
        for i, (g, w) in enumerate(zip(flat.split([w.numel() for w in given]), given, strict=True)):
            grads[i] = g.view(w.shape)
    return (grad_x if for_input else None, *grads, None)


def _fake(x: Tensor, *rest: Any) -> Tensor:
    *weights, dtype = rest
    return x.new_empty((x.shape[0], [w for w in weights if w is not None][-1].shape[0]), dtype=dtype)


def _fake_backward(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *weights, _, for_input, for_weights = rest
    n_weights = sum(w.numel() for w in weights if w is not None)
    return torch.empty_like(x) if for_input else x.new_empty(0), weights[0].new_empty(n_weights if for_weights else 0)


_ARGUMENTS = "Tensor x, Tensor weight1, Tensor weight2, Tensor? weight3, Tensor? weight4, Tensor? weight5, ScalarType dtype"
library.define("fused_mlp", f"({_ARGUMENTS}) -> Tensor", reference, _fake)
library.define(
    "fused_mlp_backward",
    f"(Tensor grad, {_ARGUMENTS}, bool for_input, bool for_weights) -> (Tensor, Tensor)",
    reference_backward,
    _fake_backward,
)
library.differentiable("fused_mlp", _setup_context, _backward)
library.once_differentiable("fused_mlp_backward", instead="build the perceptron with fused=False for second derivatives")
