"""How a wide perceptron's layers become chains of matrix products: the plan that its kernels read.

Numbers are kept in blocks of 64 rows of 64 columns, each row's eight pieces of 16 bytes swizzled (csrc/hopper.cuh). A
weight's block holds up to 256 outputs as rows, and 64 of the layer's inputs as columns.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64  # rows and columns
WIDTHS = (8, 64, 128, 256)  # of results, padded
MAX_LINKS = 24  # products that a chain holds, each way: kMaxLayers of csrc/wide_mlp.cuh


class Layer(NamedTuple):
    """One linear layer. What it takes is concatenated in this order: the hidden layer before, then whole inputs."""

    outputs: int
    takes_hidden: bool
    takes_inputs: tuple[int, ...] = ()
    is_head: bool = False  # its results are outputs of the perceptron; else ReLU makes them the next hidden layer


class Network(NamedTuple):
    """Layers in their order, and the number of columns of each input."""

    inputs: tuple[int, ...]
    layers: tuple[Layer, ...]

    def sizes(self) -> list[tuple[int, int]]:
        """Outputs and inputs of each layer's weight."""
        found, hidden = [], 0
        for layer in self.layers:
            taken = (hidden if layer.takes_hidden else 0) + sum(self.inputs[i] for i in layer.takes_inputs)
            found.append((layer.outputs, taken))
            hidden = hidden if layer.is_head else layer.outputs
        return found

    @property
    def n_outputs(self) -> int:
        """Of all heads."""
        return sum(layer.outputs for layer in self.layers if layer.is_head)


def blocks(columns: int) -> int:
    """Blocks that hold so many columns."""
    return -(-columns // BLOCK)


def padded(columns: int) -> int:
    """The smallest width of a product that holds so many columns."""
    return next(width for width in WIDTHS if width >= columns)


class Placed(NamedTuple):
    """A layer with its places."""

    layer: Layer
    weight: int  # first number among the parameters
    bias: int
    columns: int  # of the weight
    hidden: int  # columns of the hidden layer that it takes; 0: none
    source: int  # of that hidden layer, index among hidden layers
    slot: int  # hidden: first block among what is saved; head: first column of y
    padded_bias: int


def placed_layers(network: Network) -> list[Placed]:
    """The layers in their order, with places among parameters, biases, saved blocks and outputs."""
    found: list[Placed] = []
    at = slot = column = bias = 0
    hidden, source = 0, -1
    for layer, (outputs, columns) in zip(network.layers, network.sizes(), strict=True):
        taken = hidden if layer.takes_hidden else 0
        place = column if layer.is_head else slot
        found.append(Placed(layer, at, at + outputs * columns, columns, taken, source, place, bias))
        at += outputs * (columns + 1)
        bias += padded_hidden(outputs)
        if layer.is_head:
            column += outputs
        else:
            slot += blocks(padded_hidden(outputs))
            hidden, source = outputs, source + 1
    return found


def first_blocks(network: Network) -> list[int]:
    """Of each input, among the blocks of all inputs."""
    return [sum(map(blocks, network.inputs[:i])) for i in range(len(network.inputs))]


def count_saved_blocks(placed: list[Placed]) -> int:
    """Of all hidden layers' results."""
    return sum(blocks(padded_hidden(p.layer.outputs)) for p in placed if not p.layer.is_head)


def padded_hidden(outputs: int) -> int:
    """The width of a hidden layer, and of a layer's biases, in whole blocks."""
    return max(BLOCK, padded(outputs))


def _image(matrix: Tensor) -> Tensor:
    """Numbers of the parameters [rows, columns] in the order of blocks of 64 columns: [column blocks * rows * 64]."""
    rows, columns = matrix.shape
    pieces = matrix.view(rows, columns // BLOCK, 8, 8)
    place = torch.arange(8)[None] ^ (torch.arange(rows) % 8)[:, None]  # [row, piece]
    swizzled = torch.empty_like(pieces)
    swizzled.scatter_(2, place[:, None, :, None].expand_as(pieces), pieces)
    return swizzled.transpose(0, 1).reshape(-1)


def _spread(matrix: Tensor, parts: Sequence[int]) -> Tensor:
    """Columns [rows, sum of parts], each part padded to whole blocks with -1."""
    found = [
        torch.nn.functional.pad(part, (0, blocks(part.shape[1]) * BLOCK - part.shape[1]), value=-1)
        for part in matrix.split(list(parts), 1)
    ]
    return torch.cat(found, 1)


def _rows(matrix: Tensor, rows: int) -> Tensor:
    return torch.nn.functional.pad(matrix, (0, 0, 0, rows - matrix.shape[0]), value=-1)


class Plan(NamedTuple):
    """What the kernels read; csrc/wide_mlp.cuh has the meaning of each number. On the CPU."""

    forward_links: Tensor  # [layers, 8] int32
    forward_index: Tensor  # int32, which parameter goes where; -1: 0
    bias_index: Tensor
    backward_links: Tensor
    backward_index: Tensor
    saved_blocks: int


@functools.lru_cache(maxsize=64)
def plan(network: Network, input_gradient: bool = False) -> Plan:
    """The plan of a network that :func:`fits`; ``input_gradient``: its backward pass goes on to input 0."""
    placed = placed_layers(network)
    first_block = first_blocks(network)
    links, index, biases = [], [], []
    for p in placed:
        layer = p.layer
        width = padded(layer.outputs) if layer.is_head else padded_hidden(layer.outputs)
        taken = [network.inputs[i] for i in layer.takes_inputs]
        first = first_block[layer.takes_inputs[0]] if taken else 0
        count = sum(map(blocks, taken))
        bias = p.padded_bias
        links.append([width, blocks(p.hidden), first, count, p.slot, layer.outputs if layer.is_head else 0, bias, 0])
        matrix = p.weight + torch.arange(layer.outputs * p.columns).view(layer.outputs, p.columns)
        parts = [*([p.hidden] if p.hidden else []), *taken]
        index.append(_image(_rows(_spread(matrix, parts), width)))
        biases.append(_rows((p.bias + torch.arange(layer.outputs))[:, None], padded_hidden(layer.outputs))[:, 0])
    backward_links, backward_index = _backward(network, placed, input_gradient)
    return Plan(
        torch.tensor(links, dtype=torch.int32),
        torch.cat(index).int(),
        torch.cat(biases).int(),
        backward_links,
        backward_index,
        count_saved_blocks(placed),
    )


def _backward(network: Network, placed: list[Placed], input_gradient: bool) -> tuple[Tensor, Tensor]:
    """From the last hidden layer to the first: dZ of the layer behind it, and of the heads on it, times their weights.

    For the gradient of input 0, dZ of each layer that takes it times the weight's columns of that input, added up.
    """
    hidden = [p for p in placed if not p.layer.is_head]
    outer = blocks(network.n_outputs)
    links, index = [], []
    for i in reversed(range(len(hidden))):
        mine = hidden[i]
        width = padded_hidden(mine.layer.outputs)
        parts: list[Tensor] = []
        behind = [p for p in placed if p.hidden and p.source == i]
        following = [p for p in behind if not p.layer.is_head]
        for p in following:
            parts.append(_rows(_of_hidden(p), padded_hidden(p.layer.outputs)))
        heads = [p for p in behind if p.layer.is_head]
        if heads:
            of_outputs = torch.full((outer * BLOCK, mine.layer.outputs), -1)
            for p in heads:
                of_outputs[p.slot : p.slot + p.layer.outputs] = _of_hidden(p)
            parts.append(of_outputs)
        matrix = torch.cat(parts).T  # [hidden, outputs of what takes it]
        index.append(_image(_rows(matrix.contiguous(), width)))
        n_following = sum(padded_hidden(p.layer.outputs) // BLOCK for p in following)
        links.append([width, n_following, 0, outer if heads else 0, mine.slot, 0, 0, 0])
        if input_gradient and 0 in mine.layer.takes_inputs:
            n_columns, n_rows = network.inputs[0], padded_hidden(mine.layer.outputs)
            of_input = _columns(mine, mine.hidden, n_columns)
            index.append(_image(_rows(_rows(of_input, n_rows).T.contiguous(), padded(n_columns))))
            adds = any(link[5] > 0 for link in links)
            links.append([padded(n_columns), n_rows // BLOCK, 0, 0, 0, n_columns, 0, int(adds)])
    return torch.tensor(links, dtype=torch.int32), torch.cat(index).int()


def _of_hidden(p: Placed) -> Tensor:
    """Indices [outputs, hidden] of the part of a layer's weight that takes the hidden layer."""
    return _columns(p, 0, p.hidden)


def _columns(p: Placed, first: int, count: int) -> Tensor:
    """Indices [outputs, count] of columns of a layer's weight."""
    return p.weight + torch.arange(p.layer.outputs)[:, None] * p.columns + first + torch.arange(count)


@functools.lru_cache(maxsize=64)  # asked in every call
def fits(network: Network) -> bool:
    """Whether the kernels take such a network."""
    hidden = [layer for layer in network.layers if not layer.is_head]
    contiguous = all(
        layer.takes_inputs == tuple(range(layer.takes_inputs[0], layer.takes_inputs[0] + len(layer.takes_inputs)))
        for layer in network.layers
        if layer.takes_inputs
    )
    return (
        len(hidden) >= 1
        and all(columns > 0 for _, columns in network.sizes())
        and len(network.layers) <= MAX_LINKS  # the backward chain without input gradient is no longer
        and contiguous
        and 1 <= sum(map(blocks, network.inputs)) <= 4
        and all(1 <= layer.outputs <= 256 for layer in network.layers)
        and 1 <= network.n_outputs <= 256
        and {p.source for p in placed_layers(network) if p.hidden} == set(range(len(hidden)))  # each is taken
    )


def has_input_gradient(network: Network) -> bool:
    """Whether the kernels' backward pass can go on to input 0.

    Hidden layers alone take it, and there is room for a link for each of these besides those of the hidden layers.
    """
    takers = [layer for layer in network.layers if 0 in layer.takes_inputs]
    n_hidden = sum(not layer.is_head for layer in network.layers)
    return fits(network) and not any(layer.is_head for layer in takers) and n_hidden + len(takers) <= MAX_LINKS
