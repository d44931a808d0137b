"""A counter-based random generator: the numbers are a function of (seed, rank, step, stream, index) and of nothing else.

So a resumed run draws what an uninterrupted one draws, every DDP rank draws its own, a CUDA graph captures the draw (the
step is read on the device), and the CPU kernel, the CUDA kernel and the reference give the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_tensor
from lightning_nerf.ops import library

# One stream per purpose, so that two draws of one step never share numbers.
STREAM_RAYS = 0  # which pixel of which image
STREAM_BACKGROUND = 1
STREAM_JITTER = 2  # where in its first step a ray starts
STREAM_CELLS = 3  # which occupancy cells are updated
STREAM_CELL_POINTS = 4  # where in the cell
STREAM_CELL_TIMES = 5  # when
STREAM_UNIFORM = 6  # where in their strata a ray's samples lie: of Uniform
STREAM_COARSE = 7  # of Hierarchical's coarse round
STREAM_FINE = 8  # of its fine round
STREAM_DENSITY_NOISE = 9  # added to densities in training
STREAM_TIME_SHIFTS = 12  # of the loss TemporalSmoothness
STREAM_PERTURBATION = 13  # of the loss PerturbationTV
STREAM_SPARSITY = 14  # of the loss Sparsity
STREAM_PROPOSALS = 15  # of the rounds of Proposal, one column each
STREAM_USER = 16  # free for third parties from here on


def make_key(seed: int, rank: int = 0, step: int = 0, device: torch.device | str | None = None) -> Tensor:
    """A generator's state as a tensor ``[seed, rank, step]`` (int64); advance it in place: ``key[2] += 1``."""
    return torch.tensor([seed, rank, step], dtype=torch.int64, device=device)


def key_from_torch(device: torch.device | str | None = None) -> Tensor:
    """A key drawn from torch's own generator of ``device``, without synchronization: it follows ``torch.manual_seed``."""
    return torch.randint(0, 2**32, (3,), dtype=torch.int64, device=device)


def random_uniform(key: Tensor, stream: int, n: int, k: int) -> Tensor:
    """Uniform numbers in [0, 1): multiples of 2^-24, independent over ``n``, ``k``, streams, steps, ranks and seeds.

    Row i holds the first k words of the Philox4x32-10 block with key (seed, rank) and counter (i, block, step, stream);
    seed, rank and step enter with their low 32 bits.

    Args:
        key: [3] int64, see :func:`make_key`; read on its device, without synchronization.
        stream: which of 2^32 independent sequences; this module's ``STREAM_*`` are taken.
        n: rows, 0 <= n < 2^31.
        k: numbers per row, k >= 1; four cost as much as one.

    Returns:
        [n, k] float32 on the key's device. Not differentiable.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox4x32-10).
    """
    check_tensor("key", key, (3,), torch.int64)
    if not 0 <= n < 2**31 or k < 1 or not 0 <= stream < 2**32:
        raise BadArgument(f"expected 0 <= n < 2**31, k >= 1 and 0 <= stream < 2**32, got n={n}, k={k}, stream={stream}")
    return torch.ops.lightning_nerf.random_uniform(key, stream, n, k)


_MASK = 0xFFFFFFFF


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the 64-bit product of two 32-bit numbers held in int64, without its overflow."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 on 32-bit words held in int64 tensors of one shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def reference(key: Tensor, stream: int, n: int, k: int) -> Tensor:
    seed, rank, step = (key & _MASK).unbind()
    row = torch.arange(n, device=key.device)
    words: list[Tensor] = []
    for block in range((k + 3) // 4):
        counter = (row, torch.full_like(row, block), step.expand_as(row), torch.full_like(row, stream))
        words.extend(philox(counter, (seed.expand_as(row), rank.expand_as(row))))
    return (torch.stack(words[:k], -1) >> 8).to(torch.float32) * 2.0**-24


library.define(
    "random_uniform",
    "(Tensor key, int stream, int n, int k) -> Tensor",
    reference,
    lambda key, stream, n, k: key.new_empty((n, k), dtype=torch.float32),
)
