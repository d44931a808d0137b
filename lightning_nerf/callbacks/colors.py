"""Color maps for pictures of scalars."""

from __future__ import annotations

import torch
from torch import Tensor

# Nine stops from dark violet over teal to yellow, evenly spaced in lightness, so that the order survives a grey print.
_STOPS = [
    (0.27, 0.00, 0.33),
    (0.28, 0.17, 0.48),
    (0.23, 0.32, 0.55),
    (0.17, 0.45, 0.56),
    (0.13, 0.57, 0.55),
    (0.16, 0.68, 0.50),
    (0.37, 0.79, 0.38),
    (0.68, 0.86, 0.20),
    (0.99, 0.91, 0.14),
]


def colorize(values: Tensor) -> Tensor:
    """Colors [..., 3] of values in [0, 1], clamped; NaN becomes the lowest color."""
    stops = torch.tensor(_STOPS, dtype=torch.float32, device=values.device)
    position = torch.nan_to_num(values.float(), nan=0.0).clamp(0, 1) * (len(stops) - 1)
    index = position.long().clamp(max=len(stops) - 2)
    share = (position - index)[..., None]
    return stops[index] * (1 - share) + stops[index + 1] * share


def to_uint8(image: Tensor) -> Tensor:
    """Float image in [0, 1] to uint8 on the CPU, rounded."""
    return (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
