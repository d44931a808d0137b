"""How the weights' gradients of a wide perceptron are shared among multiprocessors: the items that its kernels read."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nerf.ops.wide_mlp_layout import (
    BLOCK,
    Network,
    blocks,
    count_saved_blocks,
    first_blocks,
    padded_hidden,
    placed_layers,
)

PIECE_COLUMNS = 256
PIECE_SIZE = 2 * BLOCK * PIECE_COLUMNS + 2 * BLOCK
OUTER, INNER, INPUTS, HIDDEN = range(4)  # operands


class Pieces(NamedTuple):
    """Who adds up which piece of the gradients."""

    items: Tensor  # [items, 12] int32
    sources: Tensor  # [parameters, 2] int32, first place among the pieces, and number of pieces to add
    n_pieces: int


@functools.lru_cache(maxsize=64)
def gradient_pieces(network: Network, n_processors: int) -> Pieces:
    """Products dZ^T H of up to 128 x 256, shared among the multiprocessors by the bytes that they read."""
    placed = placed_layers(network)
    hidden = [p for p in placed if not p.layer.is_head]
    saved = count_saved_blocks(placed)
    n_inputs = sum(map(blocks, network.inputs))
    outer = blocks(network.n_outputs)
    first_block = first_blocks(network)
    items: list[list[int]] = []
    targets: list[list[tuple[Tensor, Tensor]]] = []  # of each item: parameters, and their places in the piece
    for p in placed:
        outputs = p.layer.outputs
        sources: list[tuple[int, int, int, int, int]] = []  # kind, slot, stride, columns, first column of the weight
        if p.hidden:
            sources.append((HIDDEN, hidden[p.source].slot, saved, p.hidden, 0))
        column = p.hidden
        for i in p.layer.takes_inputs:
            sources.append((INPUTS, first_block[i], n_inputs, network.inputs[i], column))
            column += network.inputs[i]
        kind, slot, stride = (OUTER, p.slot // BLOCK, outer) if p.layer.is_head else (INNER, p.slot, saved)
        shift = p.slot % BLOCK if p.layer.is_head else 0  # first row of a head in its blocks
        for top in range(0, blocks(shift + outputs), 2):
            rows = torch.arange(max(0, top * BLOCK - shift), min(outputs, (top + 2) * BLOCK - shift))
            in_piece = rows + shift - top * BLOCK
            n_rows = min(2, blocks(shift + outputs) - top)
            for s, (b_kind, b_slot, b_stride, columns, first) in enumerate(sources):
                for left, n_columns in _parts(padded_hidden(columns) // BLOCK if b_kind == HIDDEN else blocks(columns)):
                    some = torch.arange(left * BLOCK, min(columns, (left + n_columns) * BLOCK))
                    items.append([kind, slot + top, stride, n_rows, b_kind, b_slot + left, b_stride, n_columns])
                    found = [
                        (
                            p.weight + rows[:, None] * p.columns + first + some,
                            in_piece[:, None] * PIECE_COLUMNS + some - left * BLOCK,
                        )
                    ]
                    if s == 0 and left == 0:
                        found.append((p.bias + rows, 2 * BLOCK * PIECE_COLUMNS + in_piece))
                    targets.append(found)
    return _shared(items, targets, n_processors)


def _parts(n_blocks: int) -> list[tuple[int, int]]:
    """First block and number of blocks, for each of which there is a product."""
    found, left = [], 0
    while left < n_blocks:
        count = next(size for size in (4, 2, 1) if size <= n_blocks - left)
        found.append((left, count))
        left += count
    return found


def _shared(items: list[list[int]], targets: list[list[tuple[Tensor, Tensor]]], n_processors: int) -> Pieces:
    costs = [item[3] + item[7] for item in items]
    splits = [1] * len(items)
    while sum(splits) < n_processors:
        busiest = max(range(len(items)), key=lambda i: costs[i] / splits[i])
        splits[busiest] += 1
    n_parameters = 1 + max(int(parameter.max()) for found in targets for parameter, _ in found)
    sources = torch.zeros(n_parameters, 2, dtype=torch.int64)
    rows, first = [], 0
    for item, count, found in zip(items, splits, targets, strict=True):
        rows.append([*item, first, count, 0, 0])
        for parameter, place in found:
            sources[parameter.reshape(-1), 0] = first * PIECE_SIZE + place.reshape(-1)
            sources[parameter.reshape(-1), 1] = count
        first += count
    return Pieces(torch.tensor(rows, dtype=torch.int32), sources.int(), first)
