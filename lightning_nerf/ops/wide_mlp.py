"""Wide perceptrons: all layers of a group of rows, one after the other, while its activations stay on the chip.

Layers of up to 256 outputs with biases, ReLU behind hidden layers, any layer may take the inputs once more (skip
connections), and several may be outputs. Operands of every product are rounded to float16 or bfloat16, sums are float32.
CUDA kernels for compute capability 9.0 (Hopper); elsewhere :func:`layer_by_layer`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nerf.checks import BadArgument, check_integer, check_same_device, check_tensor, needs_grad
from lightning_nerf.ops import library
from lightning_nerf.ops import wide_mlp_layout as layout
from lightning_nerf.ops.frequency import frequency
from lightning_nerf.ops.library import Context, Inputs
from lightning_nerf.ops.wide_mlp_layout import Network, has_input_gradient
from lightning_nerf.ops.wide_mlp_pieces import gradient_pieces
from lightning_nerf.ops.wide_mlp_reference import reference, reference_backward

MAX_FREQUENCIES = 16  # the kernels' sines are exact to half precision up to here


class Encoding(NamedTuple):
    """An input's positional encoding, see :func:`~lightning_nerf.ops.frequency.frequency`; no frequencies: none."""

    n_frequencies: int = 0  # up to 16
    include_input: bool = True
    scale: float = 1.0

    def columns(self, dims: int) -> int:
        """Columns of the encoding of so many."""
        return dims * (2 * self.n_frequencies + self.include_input) if self.n_frequencies else dims


class Input(NamedTuple):
    """Rows [N, D] float32 of an input, encoded on their way into a perceptron."""

    rows: Tensor  # [N, D], or [M, D] with row indices
    encoding: Encoding = Encoding()
    row_indices: Tensor | None = None  # [N] int32, not checked: the perceptron's row i is rows[row_indices[i]]

    def dense(self, count: Tensor | None = None) -> Tensor:
        """[N, columns], encoded; differentiable in the rows."""
        rows = self.rows
        if self.encoding.n_frequencies:
            n, include_input, scale = self.encoding
            rows = frequency(
                rows, n, include_input=include_input, scale=scale, count=count if self.row_indices is None else None
            )
        if self.row_indices is None:
            return rows
        return rows[self.row_indices] if len(rows) > 0 else rows.new_zeros(len(self.row_indices), rows.shape[1])


def wide_mlp(
    network: Network,
    inputs: Sequence[Input],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    count: Tensor | None = None,
) -> Tensor:
    """Outputs [N, O] float32 of N rows, those of all heads side by side.

    As ``torch.autocast`` runs such layers: inputs, weights, hidden activations and their gradients are rounded to
    ``dtype``. Biases, outputs and the gradients of weights and biases are float32.

    Args:
        network: which layer takes what; one that :func:`has_kernel` knows.
        inputs: one or two, of 256 columns in all as the layers take them; the second may have row indices.
        weights: [outputs, inputs] float32 of each layer; what a layer takes is concatenated in the order hidden, inputs.
        biases: [outputs] float32 of each layer.
        dtype: torch.float16 or torch.bfloat16.
        count: [1] int32 on the device: rows from there on are not read, cost nothing and have outputs of 0. None: all.

    Differentiable once in weights, biases and the first input's rows (see :func:`has_input_gradient`), not in the second
    input, with sums in an order that depends on N and the GPU alone.
    Training keeps 2 bytes for each row and unit of a hidden layer, and its backward pass takes as much again.

    Source: the layers of Mildenhall et al., "NeRF", ECCV 2020, and of others like it; products as in NVIDIA's PTX ISA 8.0.
    """
    sizes = network.sizes()
    if not layout.fits(network):
        raise BadArgument(f"network: expected one that the kernels know, see has_kernel, got {network}")
    if len(inputs) != len(network.inputs) or len(weights) != len(sizes) or len(biases) != len(sizes):
        raise BadArgument(
            f"inputs, weights, biases: expected {len(network.inputs)}, {len(sizes)} and {len(sizes)} tensors, got "
            f"{len(inputs)}, {len(weights)} and {len(biases)}"
        )
    named: dict[str, Tensor | None] = {"count": count}
    for i, (given, columns) in enumerate(zip(inputs, network.inputs, strict=True)):
        _check_input(f"inputs[{i}]", given, len(inputs[0].rows), columns, indexed=i > 0)
        named |= {f"inputs[{i}].rows": given.rows, f"inputs[{i}].row_indices": given.row_indices}
    for i, ((rows, columns), weight, bias) in enumerate(zip(sizes, weights, biases, strict=True)):
        check_tensor(f"weights[{i}]", weight, (rows, columns), torch.float32)
        check_tensor(f"biases[{i}]", bias, (rows,), torch.float32)
        named |= {f"weights[{i}]": weight, f"biases[{i}]": bias}
    if count is not None:
        check_tensor("count", count, (1,), torch.int32)
    if dtype not in (torch.float16, torch.bfloat16):
        raise BadArgument(f"dtype: expected torch.float16 or torch.bfloat16, got {dtype}")
    check_same_device(**named)
    _check_device(inputs[0].rows.device)
    parameters = torch.cat([t.flatten() for pair in zip(weights, biases, strict=True) for t in pair])
    first, second = inputs[0], inputs[1] if len(inputs) > 1 else None
    to_input = needs_grad(first.rows)
    if (to_input and not has_input_gradient(network)) or (second is not None and needs_grad(second.rows)):
        raise NotImplementedError(
            "wide_mlp has a derivative in its first input alone, and that only where has_input_gradient(network); run "
            "layer_by_layer for others"
        )
    save = torch.is_grad_enabled() and (parameters.requires_grad or to_input)
    plan = _plan_on(network, parameters.device, to_input)
    rows2, index2 = (None, None) if second is None else (second.rows.contiguous(), second.row_indices)
    index2 = None if index2 is None else index2.contiguous()
    encodings = *first.encoding, *(Encoding() if second is None else second.encoding)
    return torch.ops.lightning_nerf.wide_mlp(
        first.rows.contiguous(), rows2, index2, parameters, count, *plan, save, dtype, *encodings
    )[0]


def _check_input(name: str, given: Input, n: int, columns: int, indexed: bool) -> None:
    check_tensor(f"{name}.rows", given.rows, ("M", "D"), torch.float32)
    check_integer(f"{name}.encoding.n_frequencies", given.encoding.n_frequencies, 0, MAX_FREQUENCIES)
    if given.row_indices is not None and not indexed:
        raise BadArgument(f"{name}.row_indices: expected None, since the first input says how many rows there are")
    if given.row_indices is not None:
        check_tensor(f"{name}.row_indices", given.row_indices, (n,), torch.int32)
    elif len(given.rows) != n:
        raise BadArgument(f"{name}.rows: expected {n} rows as in inputs[0], got {len(given.rows)}")
    if (got := given.encoding.columns(given.rows.shape[1])) != columns:
        raise BadArgument(f"{name}.rows: expected {columns} columns, encoded, got {got}")


def layer_by_layer(
    network: Network, inputs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """The same in torch's own products, in the dtype of the inputs or autocast's; differentiable in everything."""
    hidden: Tensor | None = None
    outputs = []
    for layer, weight, bias in zip(network.layers, weights, biases, strict=True):
        taken = [hidden] if layer.takes_hidden and hidden is not None else []
        taken += [inputs[i] for i in layer.takes_inputs]
        result = F.linear(taken[0] if len(taken) == 1 else torch.cat(taken, -1), weight, bias)
        if layer.is_head:
            outputs.append(result)
        else:
            hidden = result.relu()
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


def has_kernel(device: torch.device, network: Network) -> bool:
    """Is there a kernel for a perceptron of this shape on this device?"""
    return device.type == "cuda" and layout.fits(network) and _is_hopper(device.index or 0)


def _check_device(device: torch.device) -> None:
    """Refuse another GPU than Hopper, if the library has kernels for CUDA: there they would compute nothing."""
    if device.type == "cuda" and library.has_kernel("wide_mlp", "CUDA") and not _is_hopper(device.index or 0):
        raise BadArgument(f"inputs: expected a GPU of compute capability 9.0, got {device}; run layer_by_layer there")


@functools.cache
def _is_hopper(device: int) -> bool:
    return library.has_kernel("wide_mlp", "CUDA") and torch.cuda.get_device_capability(device) == (9, 0)


@functools.lru_cache(maxsize=32)
def _plan_on(network: Network, device: torch.device, input_gradient: bool = False) -> tuple[Any, ...]:
    """What the ops take of a plan, on a device. On a CPU, where a reference serves, with one piece for each product."""
    cuda = device.type == "cuda"
    n_processors = torch.cuda.get_device_properties(device).multi_processor_count if cuda else 1
    with torch.inference_mode(False):  # a validation may come first, and what it caches serves training
        plan, pieces = layout.plan(network, input_gradient), gradient_pieces(network, n_processors)
        tensors = [*plan[:5], pieces.items, pieces.sources]
        return *(t.to(device) for t in tensors), network.n_outputs, plan.saved_blocks, pieces.n_pieces


# -- derivative ----------------------------------------------------------------------------------------------------------


def _setup_context(ctx: Context, inputs: Inputs, output: tuple[Tensor, ...]) -> None:
    x, parameters, count, (n_pieces, _, dtype) = inputs[0], inputs[3], inputs[4], inputs[14:17]
    backward_links, backward_index, items, sources = inputs[8:12]
    _, blocks, hidden, signs = output
    ctx.mark_non_differentiable(blocks, hidden, signs)
    x = x if ctx.needs_input_grad[0] else None
    ctx.save_for_backward(x, blocks, hidden, signs, parameters, count, backward_links, backward_index, items, sources)
    ctx.n_pieces, ctx.dtype, ctx.encoding = n_pieces, dtype, Encoding(*inputs[17:20])


def _backward(ctx: Context, grad: Tensor | None, *_: Tensor | None) -> Inputs:
    nothing: list[Any] = [None] * 23
    x, *saved = ctx.saved_tensors
    n_columns = 0 if x is None else ctx.encoding.columns(x.shape[1])
    if grad is None or not (ctx.needs_input_grad[0] or ctx.needs_input_grad[3]):
        return tuple(nothing)
    grad_parameters, grad_x = torch.ops.lightning_nerf.wide_mlp_backward(
        grad.contiguous(), *saved, ctx.n_pieces, n_columns, ctx.dtype
    )
    nothing[3] = grad_parameters
    if x is not None:
        n_frequencies, include_input, scale = ctx.encoding
        if n_frequencies:
            count = saved[4]
            grad_x = torch.ops.lightning_nerf.frequency_backward(grad_x, x, n_frequencies, include_input, scale, count)
        nothing[0] = grad_x
    return tuple(nothing)


def _fake(x: Tensor, x2: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    n_outputs, saved_blocks, _, save, dtype, *encodings = rest[10:]
    groups = (x.shape[0] + 127) // 128 * 2
    blocks = layout.blocks(Encoding(*encodings[:3]).columns(x.shape[1]))
    if x2 is not None:
        blocks += layout.blocks(Encoding(*encodings[3:]).columns(x2.shape[1]))
    kept = groups if save else 0
    return (
        x.new_empty((x.shape[0], n_outputs)),
        x.new_empty((groups, blocks, 4096), dtype=dtype),
        x.new_empty((kept, saved_blocks, 4096), dtype=dtype),
        x.new_empty((kept, saved_blocks, 128), dtype=torch.int32),
    )


def _fake_backward(
    grad: Tensor, blocks: Tensor, hidden: Tensor, signs: Tensor, parameters: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    input_columns = rest[6]
    return torch.empty_like(parameters), grad.new_empty(grad.shape[0], input_columns)


library.define(
    "wide_mlp",
    "(Tensor x, Tensor? x2, Tensor? index2, Tensor parameters, Tensor? count, Tensor links, Tensor index, Tensor "
    "bias_index, Tensor backward_links, Tensor backward_index, Tensor items, Tensor sources, int n_outputs, int "
    "saved_blocks, int n_pieces, bool save, ScalarType dtype, int frequencies, bool include_input, float scale, int "
    "frequencies2, bool include_input2, float scale2) -> (Tensor y, Tensor inputs, Tensor hidden, Tensor signs)",
    reference,
    _fake,
)
library.define(
    "wide_mlp_backward",
    "(Tensor grad, Tensor inputs, Tensor hidden, Tensor signs, Tensor parameters, Tensor? count, Tensor backward_links, "
    "Tensor backward_index, Tensor items, Tensor sources, int n_pieces, int input_columns, ScalarType dtype) -> "
    "(Tensor parameters, Tensor input)",
    reference_backward,
    _fake_backward,
)
library.differentiable("wide_mlp", _setup_context, _backward)
library.once_differentiable("wide_mlp_backward", instead="run layer_by_layer for second derivatives")
