from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.sample_points import reference, sample_points
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import PackedSamples, Rays
from tests.ops.harness import DEVICES, assert_detected, check_op, ragged_offsets, rand, to

# name -> samples per ray, capacity
CASES: dict[str, tuple[list[int], int]] = {
    "no rays": ([], 0),
    "no rays, a tail": ([], 5),
    "no samples": ([0, 0], 0),
    "one ray": ([7], 7),
    "ragged": ([5, 0, 1, 16, 0, 33, 2], 57),
    "a tail": ([2, 0, 3], 300),
    "long ray": ([1, 9000], 9001),
}
# Three float32 roundings of numbers up to 2; an fma saves one.
TOLERANCE = {"rtol": 4e-7, "atol": 5e-7}


def rays_of(n: int, *, times: bool = True) -> Rays:
    vectors = (rand(n, 3, seed=1, low=-1), rand(n, 3, seed=2, low=-1))
    return Rays(*vectors, torch.zeros(n), torch.ones(n), rand(n, seed=3) if times else None)


def samples_of(counts: list[int], capacity: int) -> PackedSamples:
    n = sum(counts)
    t = torch.zeros(capacity)
    t[:n] = rand(n, seed=0)
    index = torch.zeros(capacity, dtype=torch.int32)
    index[:n] = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64)).int()
    kept = torch.ones(len(counts), dtype=torch.bool)
    return PackedSamples(t, torch.where(t > 0, t + 0.1, 0.0), index, ragged_offsets(counts), kept)


def arguments(name: str, *, times: bool = True) -> tuple[Any, ...]:
    counts, capacity = CASES[name]
    rays, samples = rays_of(len(counts), times=times), samples_of(counts, capacity)
    return rays.origins, rays.directions, rays.times, samples.t_starts, samples.t_ends, samples.ray_indices, None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_kernel_matches_the_reference(device: str, times: bool, name: str) -> None:
    check_op("sample_points", reference, arguments(name, times=times), device=device, **TOLERANCE)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("contraction", [0, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_positions_in_the_unit_cube(device: str, name: str, contraction: int) -> None:
    to_unit = torch.stack([rand(3, seed=8, low=0.2), rand(3, seed=9, low=-1)])
    check_op("sample_points", reference, (*arguments(name)[:-1], to_unit, contraction), device=device, **TOLERANCE)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("contraction", ["l2", "linf"])
def test_contracted_positions_are_those_of_the_box(device: str, contraction: str) -> None:
    box = SceneBox(torch.tensor([[-1.0, -0.5, -2.0], [1.0, 1.5, 2.0]], device=device), contraction)
    far = torch.tensor([0.1, 3.0, 1e6, 3e18, 3e30], device=device)  # inside, and ever farther; the last overflow squares
    rays = Rays(torch.zeros(5, 3, device=device), rand(5, 3, seed=3, low=-1, high=1).to(device), torch.zeros_like(far), far)
    offsets = torch.arange(6, dtype=torch.int32, device=device)
    samples = PackedSamples(far, far, offsets[:5], offsets, torch.ones(5, dtype=torch.bool, device=device))
    unit = sample_points(rays, samples, to_unit=box.affine(), contraction=contraction)[0]
    torch.testing.assert_close(unit, box.to_unit(sample_points(rays, samples)[0]), rtol=0, atol=1e-6)
    assert ((unit >= 0) & (unit <= 1)).all()
    with pytest.raises(ValueError, match="contraction: expected 'none' without to_unit"):
        sample_points(rays, samples, contraction=contraction)
    with pytest.raises(ValueError, match="contraction: expected one of none, l2, linf, got 'ndc'"):
        sample_points(rays, samples, to_unit=box.affine(), contraction="ndc")


def test_only_positions_are_mapped() -> None:
    to_unit = torch.stack([rand(3, seed=8, low=0.2), rand(3, seed=9, low=-1)])
    rays, samples = rays_of(3), samples_of([2, 0, 3], 9)
    positions, *others = sample_points(rays, samples)
    unit, *same = sample_points(rays, samples, to_unit=to_unit)
    torch.testing.assert_close(unit, to_unit[1] + positions * to_unit[0], **TOLERANCE)
    assert torch.equal(same[0], others[0])  # type: ignore[arg-type]
    assert torch.equal(same[1], others[1])  # type: ignore[arg-type]


def test_points_are_those_of_the_definition() -> None:
    rays, samples = rays_of(3), samples_of([2, 0, 1], 5)
    positions, directions, times = sample_points(rays, samples)
    for i, ray in enumerate([0, 0, 2, 0, 0]):
        middle = (samples.t_starts[i] + samples.t_ends[i]) / 2
        torch.testing.assert_close(positions[i], rays.origins[ray] + middle * rays.directions[ray], **TOLERANCE)
        assert torch.equal(directions[i], rays.directions[ray])
        assert times is not None
        assert times[i] == rays.times[ray]  # type: ignore[index]
    assert torch.equal(positions[3:], rays.origins[:1].expand(2, 3))
    assert sample_points(rays._replace(times=None), samples)[2] is None


@pytest.mark.parametrize("device", DEVICES)
def test_without_rays_all_is_zero(device: str) -> None:
    rays = rays_of(0).map(lambda value: value.to(device))
    samples = PackedSamples(*to(device, samples_of([], 4)))
    for value, shape in zip(sample_points(rays, samples), [(4, 3), (4, 3), (4,)], strict=True):
        assert torch.equal(value, torch.zeros(shape, device=device))  # type: ignore[arg-type]


@pytest.mark.parametrize("device", DEVICES)
def test_nan_stays_in_its_ray(device: str) -> None:
    counts = [2, 3, 0, 4]
    origins, directions, times = (value.to(device) for value in (rand(4, 3, seed=1), rand(4, 3, seed=2), rand(4, seed=3)))
    for value in (origins, directions, times):
        value[1:3] = float("nan")
    samples = PackedSamples(*to(device, samples_of(counts, 20)))
    clean = samples.ray_indices != 1
    for value in sample_points(Rays(origins, directions, origins[:, 0], origins[:, 0], times), samples):
        assert value is not None
        assert torch.equal(value.isfinite().view(20, -1).all(1), clean)


def test_other_strides_give_the_same() -> None:
    rays, samples = rays_of(3), samples_of([2, 0, 3], 6)
    strided = rays._replace(origins=rays.origins.T.contiguous().T, directions=rays.directions.repeat(1, 2)[:, :3])
    wide = samples._replace(t_starts=samples.t_starts.repeat(2, 1).T.contiguous()[:, 0])
    torch.testing.assert_close(sample_points(strided, wide), sample_points(rays, samples), rtol=0, atol=0)


def test_the_comparison_detects_starts_instead_of_middles() -> None:
    def mutated(*args: Tensor) -> tuple[Tensor, ...]:
        return reference(*args[:4], args[3], *args[5:])

    assert_detected(lambda: check_op("sample_points", mutated, arguments("ragged"), device="cpu", **TOLERANCE))


def test_the_reference_passes_gradcheck() -> None:
    origins, directions, times, t_starts, t_ends, index, _ = arguments("a tail")
    to_unit = torch.stack([rand(3, seed=8, low=0.2), rand(3, seed=9)])
    inputs = [value.double().requires_grad_() for value in (origins, directions, times, t_starts[:9], t_ends[:9], to_unit)]
    assert torch.autograd.gradcheck(lambda *args: reference(*args[:5], index[:9], args[5]), inputs)


@pytest.mark.parametrize("device", DEVICES)
def test_rays_that_require_a_gradient_get_it(device: str) -> None:
    counts, capacity = CASES["ragged"]
    rays = rays_of(len(counts)).map(lambda value: value.to(device))
    samples = PackedSamples(*to(device, samples_of(counts, capacity)))
    learned = rays._replace(origins=rays.origins.clone().requires_grad_(), times=rays.times.clone().requires_grad_())  # type: ignore[union-attr]
    positions, _, times = sample_points(learned, samples)
    torch.testing.assert_close(positions, sample_points(rays, samples)[0], **TOLERANCE)
    assert times is not None
    (positions.sum() + 2 * times.sum()).backward()
    expected = torch.tensor(counts, device=device).float()
    assert torch.equal(learned.origins.grad, expected[:, None].expand(-1, 3))  # type: ignore[arg-type]
    assert torch.equal(learned.times.grad, 2 * expected)  # type: ignore[arg-type,union-attr]
    with torch.no_grad():
        assert not sample_points(learned, samples)[0].requires_grad


def test_bad_arguments_are_named() -> None:
    rays, samples = rays_of(3), samples_of([2, 0, 3], 6)
    for changed, message in [
        ({"origins": rays.origins.double()}, r"rays.origins: expected dtype torch.float32, got torch.float64"),
        ({"directions": rays.directions[:2]}, r"rays.directions: expected shape \[3, 3\], got \[2, 3\]"),
        ({"times": torch.zeros(3, 1)}, r"rays.times: expected shape \[3\], got \[3, 1\]"),
        (
            {"directions": rays.directions.to("meta")},
            r"rays.directions: expected a tensor on cpu \(where rays.origins is\)",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            sample_points(rays._replace(**changed), samples)
    with pytest.raises(ValueError, match=r"to_unit: expected shape \[2, 3\], got \[3, 2\]"):
        sample_points(rays, samples, to_unit=torch.ones(3, 2))
    for changed, message in [
        ({"t_ends": samples.t_ends[:5]}, r"samples.t_ends: expected shape \[6\], got \[5\]"),
        ({"ray_indices": samples.ray_indices.long()}, r"samples.ray_indices: expected dtype torch.int32, got torch.int64"),
    ]:
        with pytest.raises(ValueError, match=message):
            sample_points(rays, samples._replace(**changed))
