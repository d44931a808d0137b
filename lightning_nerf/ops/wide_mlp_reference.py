"""The kernels of wide perceptrons in plain torch: the same plan, the same formats, rounding at the same places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 64
PIECE_COLUMNS = 256


def _swizzle(matrix: Tensor) -> Tensor:
    """Rows [..., 64 k rows or others, 8 pieces, 8] with their pieces in their places; its own inverse."""
    rows = torch.arange(matrix.shape[-3], device=matrix.device)[:, None] % 8
    place = torch.arange(8, device=matrix.device) ^ rows
    return matrix.gather(-2, place[..., None].expand(matrix.shape))


def to_blocks(rows: Tensor, groups: int) -> Tensor:
    """Rows [N, C] as [groups, C / 64, 4096], padded with zeros."""
    n, columns = rows.shape
    padded = rows.new_zeros(groups * BLOCK, (columns + BLOCK - 1) // BLOCK * BLOCK)
    padded[:n, :columns] = rows
    n_blocks = padded.shape[1] // BLOCK
    split = padded.view(groups, BLOCK, n_blocks, 8, 8).transpose(1, 2)
    return _swizzle(split).reshape(groups, n_blocks, BLOCK * BLOCK)


def to_rows(blocks: Tensor) -> Tensor:
    """The inverse of :func:`to_blocks`, padding included."""
    groups, n, _ = blocks.shape
    return _swizzle(blocks.view(groups, n, BLOCK, 8, 8)).transpose(1, 2).reshape(groups * BLOCK, n * BLOCK)


def _weights(values: Tensor, links: list[list[int]]) -> list[Tensor]:
    """Each link's weight [width, columns] from blocks in the order of use."""
    found, at = [], 0
    for width, hidden_blocks, _, input_blocks, *_ in links:
        n = hidden_blocks + input_blocks
        image = values[at : at + n * width * BLOCK].view(n, width, 8, 8)
        found.append(_swizzle(image).transpose(0, 1).reshape(width, n * BLOCK))
        at += n * width * BLOCK
    return found


def _gathered(parameters: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(index < 0, 0, parameters[index.clamp(min=0).long()]).to(dtype).to(parameters.dtype)


def _rows_that_count(n: int, count: Tensor | None) -> int:
    return n if count is None else min(n, max(0, int(count)))


def _encoded(x: Tensor, n_frequencies: int, include_input: bool, scale: float) -> Tensor:
    if n_frequencies == 0:
        return x
    powers = torch.arange(n_frequencies, device=x.device, dtype=x.dtype).exp2()
    angles = ((x * scale)[:, None, :] * powers[:, None]).flatten(1)
    return torch.cat([x, angles.sin(), angles.cos()] if include_input else [angles.sin(), angles.cos()], 1)


def reference(
    x: Tensor,
    x2: Tensor | None,
    index2: Tensor | None,
    parameters: Tensor,
    count: Tensor | None,
    links: Tensor,
    index: Tensor,
    bias_index: Tensor,
    backward_links: Tensor,
    backward_index: Tensor,
    items: Tensor,
    sources: Tensor,
    n_outputs: int,
    saved_blocks: int,
    n_pieces: int,
    save: bool,
    dtype: torch.dtype,
    *encodings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = _rows_that_count(x.shape[0], count)
    groups = (x.shape[0] + 127) // 128 * 2
    taken = [_encoded(x[:n], *encodings[:3])]
    if x2 is not None:
        taken.append(_encoded(x2[:n] if index2 is None else x2[index2[:n].long()], *encodings[3:]))
    inputs = torch.cat([to_blocks(t.to(dtype), groups) for t in taken], 1)
    given = to_rows(inputs)[:n].to(parameters.dtype)
    plan = links.tolist()
    biases = _gathered(parameters, bias_index, parameters.dtype)
    y = x.new_zeros(x.shape[0], n_outputs)
    saved = x.new_zeros(n, saved_blocks * BLOCK)
    hidden = given[:, :0]
    for weight, link in zip(_weights(_gathered(parameters, index, dtype), plan), plan, strict=True):
        width, hidden_blocks, first, input_blocks, slot, outputs, bias, _ = link
        operand = [hidden[:, : hidden_blocks * BLOCK], given[:, first * BLOCK : (first + input_blocks) * BLOCK]]
        result = torch.cat(operand, 1) @ weight.T + biases[bias : bias + width]
        if outputs > 0:
            y[:n, slot : slot + outputs] = result[:, :outputs]
        else:
            hidden = result.relu().to(dtype).to(parameters.dtype)
            saved[:, slot * BLOCK : slot * BLOCK + width] = hidden
    kept = groups if save else 0
    blocks = to_blocks(saved.to(dtype), groups)[:kept]
    return y, inputs, blocks, x.new_zeros((kept, saved_blocks, 128), dtype=torch.int32)


def reference_backward(
    grad: Tensor,
    inputs: Tensor,
    hidden: Tensor,
    signs: Tensor,
    parameters: Tensor,
    count: Tensor | None,
    backward_links: Tensor,
    backward_index: Tensor,
    items: Tensor,
    sources: Tensor,
    n_pieces: int,
    input_columns: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    n, wide = _rows_that_count(grad.shape[0], count), parameters.dtype
    outer = to_rows(to_blocks(grad[:n].to(dtype), hidden.shape[0]))[:n].to(wide)
    kept = to_rows(hidden)[:n].to(wide)
    inner = torch.zeros_like(kept)
    plan = backward_links.tolist()
    behind = outer[:, :0]
    grad_input = grad.new_zeros(grad.shape[0], input_columns)
    for weight, link in zip(_weights(_gathered(parameters, backward_index, dtype), plan), plan, strict=True):
        width, hidden_blocks, first, input_blocks, slot, outputs, _, adds = link
        if outputs > 0:
            part = (behind @ weight.T)[:, :outputs]
            grad_input[:n] = grad_input[:n] + part if adds else part
            continue
        operand = [behind[:, : hidden_blocks * BLOCK], outer[:, first * BLOCK : (first + input_blocks) * BLOCK]]
        mine = slice(slot * BLOCK, slot * BLOCK + width)
        behind = (torch.cat(operand, 1) @ weight.T * (kept[:, mine] > 0)).to(dtype).to(wide)
        inner[:, mine] = behind
    operands = (outer, inner, to_rows(inputs)[:n].to(wide), kept)
    pieces = []
    for a_kind, a_slot, _, a_blocks, b_kind, b_slot, _, b_blocks, _, splits, *_ in items.tolist():
        a = operands[a_kind][:, a_slot * BLOCK : (a_slot + a_blocks) * BLOCK]
        b = operands[b_kind][:, b_slot * BLOCK : (b_slot + b_blocks) * BLOCK]
        piece = parameters.new_zeros(splits, 2 * BLOCK * (PIECE_COLUMNS + 1))
        piece[0, : 2 * BLOCK * PIECE_COLUMNS].view(2 * BLOCK, PIECE_COLUMNS)[: a.shape[1], : b.shape[1]] = a.T @ b
        piece[0, 2 * BLOCK * PIECE_COLUMNS :][: a.shape[1]] = a.sum(0)
        pieces.append(piece)
    return torch.cat(pieces).view(-1)[sources[:, 0].long()], grad_input
