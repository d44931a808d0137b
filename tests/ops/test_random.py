from __future__ import annotations

import pytest
import torch

from lightning_nerf.ops.random import make_key, philox, random_uniform, reference
from tests.ops.harness import DEVICES, assert_detected, check_op

CASES = [(0, 0, 1), (0, 1, 1), (3, 257, 3), (2**32 - 1, 10_000, 4), (7, 33, 9)]  # stream, n, k


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("stream", "n", "k"), CASES)
def test_kernel_gives_the_bits_of_the_reference(device: str, stream: int, n: int, k: int) -> None:
    for key in (make_key(0), make_key(2**40 + 5, rank=3, step=2**33 + 1), make_key(-1, step=12345)):
        check_op("random_uniform", reference, (key, stream, n, k), device=device, rtol=0, atol=0)


def test_philox_gives_the_published_vectors() -> None:
    """The known answers that come with Random123, the authors' own implementation (kat_vectors, philox4x32 10)."""
    for counter, key, expected in [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ]:
        words = philox(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor([k]) for k in key))  # type: ignore[arg-type]
        assert [int(w) for w in words] == expected


def test_streams_steps_ranks_and_seeds_differ() -> None:
    draws = [
        random_uniform(make_key(seed, rank, step), stream, 64, 4)
        for seed, rank, step, stream in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    ]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert (a == b).float().mean() < 0.02


def test_a_longer_draw_begins_with_the_shorter() -> None:
    key = make_key(4)
    torch.testing.assert_close(random_uniform(key, 1, 100, 6)[:10, :3], random_uniform(key, 1, 10, 3), rtol=0, atol=0)


def test_moments() -> None:
    u = random_uniform(make_key(9), 0, 200_000, 2)
    assert u.min() >= 0
    assert u.max() < 1
    # Standard errors of mean, variance and correlation over 2e5 draws: 6.5e-4, 1.7e-4 and 2.2e-3; five of each.
    torch.testing.assert_close(u.mean(0), torch.full((2,), 0.5), rtol=0, atol=3.3e-3)
    torch.testing.assert_close(u.var(0), torch.full((2,), 1 / 12), rtol=0, atol=8.5e-4)
    assert abs(float(torch.corrcoef(u.T)[0, 1])) < 1.1e-2


def test_the_comparison_detects_another_counter() -> None:
    def mutated(key: torch.Tensor, stream: int, n: int, k: int) -> torch.Tensor:
        return reference(key, stream + 1, n, k)

    assert_detected(lambda: check_op("random_uniform", mutated, (make_key(0), 0, 8, 2), device="cpu", rtol=0, atol=0))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"key: expected dtype torch.int64, got torch.int32"):
        random_uniform(make_key(0).int(), 0, 1, 1)
    with pytest.raises(ValueError, match=r"key: expected shape \[3\]"):
        random_uniform(torch.zeros(2, dtype=torch.int64), 0, 1, 1)
    with pytest.raises(ValueError, match="n=-1"):
        random_uniform(make_key(0), 0, -1, 1)
