from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.ops.distortion import distortion, reference
from tests.ops.harness import DEVICES, assert_detected, check_op, poison_tail, ragged_offsets, rand, run_with_grad

NAN = float("nan")
COUNTS = {
    "none": [],
    "empty": [0, 0, 0],
    "one": [1],
    "a warp": [32],
    "ragged": [0, 1, 31, 32, 33, 0, 64, 65, 5, 300, 0],
    "many": [7] * 700,
}


def make(counts: list[int], *, extra: int = 0, origin: float = 2.0, seed: int = 0) -> tuple[Tensor, ...]:
    """Weights of sum <= 1 on intervals of ray after ray, some with gaps; the tail holds NaN."""
    offsets, n = ragged_offsets(counts), sum(counts)
    weights, starts, ends = torch.empty(n), torch.empty(n), torch.empty(n)
    for ray, count in enumerate(counts):
        span = slice(int(offsets[ray]), int(offsets[ray + 1]))
        weights[span] = rand(count, seed=seed + ray) / max(count, 1)
        edges = origin + rand(2 * count, seed=seed + ray + 1000).sort().values
        starts[span], ends[span] = edges[::2], edges[1::2]
    return *(poison_tail(each, n, extra=extra) for each in (weights, starts, ends)), offsets


def by_pairs(weights: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor) -> Tensor:
    """The definition: all pairs of each ray, in float64."""
    losses: list[Tensor] = []
    for first, last in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        w, s, e = (each[first:last].double() for each in (weights, starts, ends))
        middle = (s + e) / 2
        losses.append((w[:, None] * w * (middle[:, None] - middle).abs()).sum() + (w * w * (e - s)).sum() / 3)
    return torch.stack(losses) if losses else torch.zeros(0, dtype=torch.float64)


def tolerances(counts: list[int]) -> dict[str, float]:
    """Sums of up to n products in float32 on CUDA, in steps of a warp: n / 32 + 5 roundings, each of a sum below 1, and as
    many in each of the two sums that a term has; places are in a span of 1, and one is subtracted from the other.
    """
    roundings = 3 * (max(counts, default=0) / 32 + 10)
    return {"rtol": 0.0, "atol": roundings * 2**-24, "grad_rtol": 0.0, "grad_atol": 2 * roundings * 2**-24}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("extra", [0, 40])
@pytest.mark.parametrize("name", COUNTS)
def test_kernel_equals_the_reference(name: str, extra: int, device: str) -> None:
    args, limits, opcheck = make(COUNTS[name], extra=extra), tolerances(COUNTS[name]), name == "ragged"
    check_op("distortion", reference, args, device=device, differentiable=(0,), opcheck=opcheck, **limits)


@pytest.mark.parametrize("name", COUNTS)
def test_the_reference_is_the_sum_over_pairs(name: str) -> None:
    args = make(COUNTS[name])
    torch.testing.assert_close(reference(*args).double(), by_pairs(*args), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_those_of_the_pairs(device: str) -> None:
    args = tuple(each.to(device) for each in make(COUNTS["ragged"]))
    toll = rand(len(args[-1]) - 1, seed=9).to(device)
    _, (kernel,) = run_with_grad(lambda w, s, e, o: distortion(w, s, e, offsets=o), args, (0,), [toll])
    _, (pairs,) = run_with_grad(by_pairs, args, (0,), [toll.double()])
    torch.testing.assert_close(kernel, pairs.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("origin", [0.0, 1000.0])
def test_it_does_not_matter_where_a_ray_begins(origin: float, device: str) -> None:
    """Sums are taken from the first sample's begin: a distant origin costs the rounding of places alone."""
    near, far = (tuple(each.to(device) for each in make([200] * 3, origin=at)) for at in (0.0, origin))
    a, b = (distortion(*each[:3], offsets=each[3]) for each in (near, far))
    torch.testing.assert_close(a, b, rtol=0, atol=max(origin, 1.0) * 2**-23 + 1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_dense_samples_are_a_list_of_equal_rays(device: str) -> None:
    weights, starts, ends, offsets = (each.to(device) for each in make([6] * 8))
    dense = distortion(*(each.view(2, 4, 6) for each in (weights, starts, ends)))
    assert dense.shape == (2, 4)
    assert torch.equal(dense.flatten(), distortion(weights, starts, ends, offsets=offsets))
    assert distortion(*(torch.empty(3, 0, device=device) for _ in range(3))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_a_weight_that_is_no_number_stays_in_its_ray(device: str) -> None:
    weights, starts, ends, offsets = (each.to(device) for each in make([5, 5, 5]))
    weights[7] = NAN
    losses = distortion(weights.requires_grad_(), starts, ends, offsets=offsets)
    assert losses.isfinite().tolist() == [True, False, True]
    (grad,) = torch.autograd.grad(losses[[0, 2]].sum(), weights)
    assert grad[[*range(5), *range(10, 15)]].isfinite().all()


def test_places_have_gradients_where_they_ask_for_them() -> None:
    weights, starts, ends, offsets = make([4, 5])
    loss = distortion(weights, starts.requires_grad_(), ends.requires_grad_(), offsets=offsets).sum()
    for grad in torch.autograd.grad(loss, [starts, ends]):
        assert grad.abs().max() > 0


def test_other_shapes_are_refused() -> None:
    weights, starts, ends, offsets = make([4, 5])
    cases: list[tuple[tuple[Any, ...], Tensor | None, str]] = [
        ((weights, starts[:-1], ends), offsets, "t_starts: expected shape"),
        ((weights, starts, ends.double()), offsets, "t_ends: expected dtype"),
        ((weights.view(3, 3), starts.view(3, 3), ends.view(3, 3)), offsets, "weights: expected shape"),
        ((weights, starts, ends), offsets.long(), "offsets: expected dtype"),
        ((weights, starts, ends), offsets[:0], "offsets: expected shape"),
    ]
    for args, csr, message in cases:
        with pytest.raises(BadArgument, match=message):
            distortion(*args, offsets=csr)


def test_a_wrong_reference_is_noticed() -> None:
    def without_lengths(weights: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor) -> Tensor:
        middle = (starts + ends) / 2
        return reference(weights, middle, middle, offsets)

    args, limits = make(COUNTS["ragged"]), tolerances(COUNTS["ragged"])
    assert_detected(lambda: check_op("distortion", without_lengths, args, device="cpu", opcheck=False, **limits))
