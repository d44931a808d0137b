"""What autograd says of how a result was made."""

from __future__ import annotations

from torch import Tensor


def comes_from(y: Tensor, op: str) -> bool:
    """Does y, or what it is computed from, come from an op of this name?"""
    nodes = [y.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            if op in node.name():
                return True
            nodes += [before for before, _ in node.next_functions]
    return False
