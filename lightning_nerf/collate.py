"""How torch's DataLoader makes one batch of several items that hold rays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_nerf.checks import BadArgument


def collate_rays(items: Sequence[Any], *, collate_fn_map: object = None) -> Any:
    """One ``Rays`` or ``RayBatch`` of all rays of the items, in their order. A DataLoader calls it without being told.

    Args:
        items: with one ray each (origins [3], near []), or with any numbers of rays (origins [R, 3], near [R]). What is
            None has to be None in all of them.
        collate_fn_map: torch's, not used.

    Raises:
        BadArgument: some items have what others lack, or tensors do not fit together; names the field.

    >>> import torch
    >>> from lightning_nerf import RayBatch, Rays
    >>> rays = [Rays(torch.zeros(3), torch.ones(3), near=torch.tensor(2.0), far=torch.tensor(6.0)) for _ in range(8)]
    >>> pixels = [RayBatch(ray, rgb=torch.rand(3)) for ray in rays]
    >>> loader = torch.utils.data.DataLoader(pixels, batch_size=4)
    >>> [batch.rays.near.shape for batch in loader]
    [torch.Size([4]), torch.Size([4])]
    """
    return _joined(items, type(items[0]).__name__)


def _joined(items: Sequence[Any], name: str) -> Any:
    first = items[0]
    if any((item is None) != (first is None) for item in items):
        raise BadArgument(f"{name}: expected a value in all items of a batch or in none, got both")
    if first is None:
        return None
    if hasattr(first, "_fields"):
        return type(first)(
            *(
                _joined(values, f"{name}.{field}")
                for field, values in zip(first._fields, zip(*items, strict=True), strict=True)
            )
        )
    tensors = [torch.as_tensor(item) for item in items]
    # Only colors, origins and directions have a dimension beside that of the rays.
    single = tensors[0].ndim == (1 if name.rpartition(".")[2] in ("origins", "directions", "rgb") else 0)
    try:
        return torch.stack(tensors) if single else torch.cat(tensors)
    except (RuntimeError, TypeError) as error:
        shapes = sorted({str(list(tensor.shape)) for tensor in tensors})
        raise BadArgument(f"{name}: items of a batch do not fit together, shapes {', '.join(shapes)} ({error})") from error
