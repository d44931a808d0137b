from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_nerf.ops.ray_budget import ray_budget_, reference
from tests.ops.harness import DEVICES, assert_detected, to

# n_rays, n_samples, n_counted, target, max_rays -> next n_rays
CASES: dict[str, tuple[tuple[int, int, int, float, int], int]] = {
    "follows": ((1000, 5000, 1000, 6000.0, 65536), 1200),
    "rounds down": ((1000, 3000, 1000, 4000.0, 65536), 1333),
    "some rays did not fit": ((1000, 5000, 800, 6000.0, 65536), 960),
    "at most doubles": ((1000, 1000, 1000, 1e6, 65536), 2000),
    "at least halves": ((1000, 50_000, 1000, 5000.0, 65536), 500),
    "stays below the maximum": ((60_000, 60_000, 60_000, 2.0**18, 65536), 65536),
    "stays above zero": ((1, 5000, 1, 6.0, 65536), 1),
    "nothing seen": ((1000, 0, 0, 6000.0, 65536), 2000),
    "as many as there are": ((2**31 - 1, 0, 0, 6000.0, 2**31 - 1), 2**31 - 1),
}


def counts(name: str) -> tuple[Any, ...]:
    n_rays, n_samples, n_counted, target, max_rays = CASES[name][0]
    integers = [torch.tensor(n, dtype=d) for n, d in zip((n_rays, n_samples, n_counted), DTYPES, strict=True)]
    return *integers, target, max_rays


DTYPES = (torch.int32, torch.int32, torch.int64)


def check(function: Callable[..., None], device: str, name: str) -> None:
    args = to(device, counts(name))
    function(*args)
    assert int(args[0]) == CASES[name][1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_kernel_and_reference_give_what_is_expected(device: str, name: str) -> None:
    check(torch.ops.lightning_nerf.ray_budget_, device, name)
    check(reference, device, name)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    torch.library.opcheck(torch.ops.lightning_nerf.ray_budget_.default, to(device, counts("follows")))


def test_the_comparison_detects_another_rate() -> None:
    def mutated(n_rays: Any, n_samples: Any, n_counted: Any, *rest: Any) -> None:
        reference(n_rays, n_samples, n_rays, *rest)

    assert_detected(lambda: check(mutated, "cpu", "some rays did not fit"))


def test_either_integer_will_do() -> None:
    n_rays, n_samples, n_counted, target, max_rays = counts("follows")
    ray_budget_(n_rays, n_samples.long(), n_counted.int(), target=target, max_rays=max_rays)
    assert int(n_rays) == CASES["follows"][1]


def test_bad_arguments_are_named() -> None:
    n_rays, n_samples, n_counted, target, max_rays = counts("follows")
    with pytest.raises(ValueError, match=r"n_rays: expected dtype torch.int32, got torch.int64"):
        ray_budget_(n_rays.long(), n_samples, n_counted, target=target, max_rays=max_rays)
    with pytest.raises(ValueError, match=r"n_samples: expected shape \[\], got \[1\]"):
        ray_budget_(n_rays, n_samples[None], n_counted, target=target, max_rays=max_rays)
    with pytest.raises(ValueError, match=r"target: expected > 0, got 0"):
        ray_budget_(n_rays, n_samples, n_counted, target=0, max_rays=max_rays)
    with pytest.raises(ValueError, match=r"max_rays: expected 1 <= max_rays < 2\*\*31, got 0"):
        ray_budget_(n_rays, n_samples, n_counted, target=target, max_rays=0)
