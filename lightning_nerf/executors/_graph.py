"""A captured function, and inputs that stay where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.executors._sync import unwatched


def capture(what: str, fn: Callable[[], Any], pool: Any, stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, Any]:
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


def like(batch: Any) -> Any:
    """Room for a batch: tensors, None, and tuples (also named) of those."""
    if isinstance(batch, tuple):
        parts = [like(part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return torch.empty_like(batch, memory_format=torch.contiguous_format) if isinstance(batch, Tensor) else batch


def fill(room: Any, batch: Any) -> bool:
    """Copy a batch into :func:`like` of an earlier one; False: it has another form."""
    if isinstance(batch, tuple):
        return type(batch) is type(room) and all(fill(a, b) for a, b in zip(room, batch, strict=True))
    if not isinstance(batch, Tensor):
        return batch is room
    if not isinstance(room, Tensor) or batch.shape != room.shape or batch.dtype != room.dtype:
        return False
    room.copy_(batch, non_blocking=True)
    return True
