"""A captured function, and inputs that stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from lightning_nerf.executors._sync import unwatched

T = TypeVar("T")
Pool = Any  # torch's own name for the handle of a memory pool is private
Kind = tuple[bool, Hashable]  # of a step: whether its batch is the first of an accumulation window, and its variant


class CapturedStep(NamedTuple):
    """A step's graph, and where it leaves its results."""

    graph: torch.cuda.CUDAGraph
    loss: Tensor
    logs: dict[str, Tensor]
    grads: list[Tensor | None]  # of the optimizer's parameters, in its order


def capture(what: str, fn: Callable[[], T], pool: Pool, stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, T]:
    """Record what ``fn`` does on the device, without doing it. Returns the graph and what ``fn`` returned.

    Raises:
        RuntimeError: it cannot be recorded; names ``what``. The process must not go on training: after a failed capture
            even torch's random generator raises.
    """
    graph, current, cause = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), None
    with unwatched():
        try:
            with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                try:
                    result = fn()
                except Exception as error:
                    cause = error  # what follows from it hides it
                    raise
        except Exception as error:
            torch.cuda.set_stream(current)
            cause = cause or error
            raise RuntimeError(
                f"CUDA graphs: {what} could not be captured in a CUDA graph: {cause}\n"
                "Fit with strategy='auto', in a new process, or have all of it run on the device."
            ) from cause
    return graph, result


def empty_batch(batch: T) -> T:
    """A batch of the same form, its tensors uninitialized: tensors, None, and tuples (also named) of those."""
    if isinstance(batch, tuple):
        parts = [empty_batch(part) for part in batch]
        return cast(T, type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts))
    return torch.empty_like(batch, memory_format=torch.contiguous_format) if isinstance(batch, Tensor) else batch


def copy_batch(into: object, batch: object) -> bool:
    """Copy a batch into an :func:`empty_batch` of an earlier one; False: it has another form."""
    if isinstance(batch, tuple):
        return isinstance(into, type(batch)) and all(copy_batch(a, b) for a, b in zip(into, batch, strict=True))
    if not isinstance(batch, Tensor):
        return batch is into
    if not isinstance(into, Tensor) or batch.shape != into.shape or batch.dtype != into.dtype:
        return False
    into.copy_(batch, non_blocking=True)
    return True
