from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lightning_nerf.nerfacc.grid import _enlarge_aabb, traverse_grids
from tests.nerfacc.scene import BOX, DOUBLING, random_grid, random_rays, samples_of, with_device
from tests.ops.harness import DEVICES, rand

NAN = math.nan
# Neither nested nor disjoint, one without volume in x, listed in no order; and nested, each three times as large.
ANY_BOXES = torch.tensor(
    [
        [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0],
        [0.5, 0.5, 0.5, 2.0, 2.0, 3.0],
        [-4.0, -0.5, -0.5, -2.0, 0.5, 0.5],
        [-3.0, -3.0, -3.0, 0.0, 3.0, 3.0],
        [1.0, 1.0, 1.0, 1.0, 2.0, 2.0],
    ]
)
TRIPLING = torch.stack([_enlarge_aabb(BOX, 3**level) for level in range(3)])


def first_box(point: list[float], boxes: list[list[float]]) -> int | None:
    for i, box in enumerate(boxes):
        if all(box[a] <= point[a] <= box[a + 3] for a in range(3)):
            return i
    return None


def marched(
    rays: tuple[Tensor, Tensor], binaries: Tensor, aabbs: Tensor, near: Tensor, far: Tensor, step: float, cone: float
) -> list[tuple[int, float, float, float]]:
    """Ray by ray and step by step, in float64: (ray, start, end, the midpoint's distance to the nearest face of a cell)."""
    found, boxes, shape = [], aabbs.double().tolist(), binaries.shape[1:]
    for ray, (o, d) in enumerate(zip(rays[0].double().tolist(), rays[1].double().tolist(), strict=True)):
        t = float(near[ray])
        while t < min(float(far[ray]), 60.0):
            dt = max(step, cone * t)
            middle = t + dt / 2
            if middle >= float(far[ray]):
                break
            point = [o[a] + middle * d[a] for a in range(3)]
            margin = min(abs(point[a] - box[a + side]) for box in boxes for a in range(3) for side in (0, 3))
            i = first_box(point, boxes)
            if i is not None:
                box, index = boxes[i], []
                for a in range(3):
                    size = (box[a + 3] - box[a]) / shape[a]
                    place = (point[a] - box[a]) / size if size > 0 else 0.0
                    margin = min(margin, abs(place - round(place)) * size)
                    index.append(min(int(place), shape[a] - 1))
                occupied = bool(binaries[(i, *index)])
            else:
                occupied = False
            if occupied or margin < 1e-4:
                found.append((ray, t, t + dt, margin if occupied else -margin))
            t += dt
    return found


def assert_marched(found: list[tuple[int, float, float, float]], got: tuple[Tensor, Tensor, Tensor]) -> None:
    """The same samples, but for those whose midpoints lie so near a face that float32 positions may cross it."""
    ray, t_starts, t_ends = (x.cpu() for x in got)
    # Positions up to 60 through a multiplication, an addition and the box's scaling: 60 * 2^-24 * 8 = 3e-5.
    certain = {(r, round(start / 1e-3)) for r, start, _, margin in found if margin > 3e-5}
    possible = {(r, round(start / 1e-3)): (start, end) for r, start, end, _ in found}
    keys = [(int(r), round(float(t) / 1e-3)) for r, t in zip(ray, t_starts, strict=True)]
    assert len(certain) > 100
    assert certain <= set(keys)
    assert len(set(keys)) == len(keys)
    assert all(key in possible for key in keys)
    expected = torch.tensor([possible[key] for key in keys], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([t_starts, t_ends], -1).double(), expected, rtol=2**-23, atol=1e-9)
    assert keys == sorted(keys)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cone", [0.0, 0.02])
@pytest.mark.parametrize("boxes", ["one", "doubling", "any", "tripling", "nine"])
def test_samples_are_the_steps_in_occupied_cells(device: str, boxes: str, cone: float) -> None:
    nine = torch.stack([_enlarge_aabb(BOX / 50, 2**level) for level in range(9)])  # more than the march's kernels know
    aabbs = {"one": DOUBLING[1:2], "doubling": DOUBLING, "any": ANY_BOXES, "tripling": TRIPLING, "nine": nine}[boxes]
    rays, binaries = random_rays(40), random_grid(len(aabbs), 5, 8, 6)
    near, far = rand(40, seed=8), 1 + 9 * rand(40, seed=9)
    expected = marched(rays, binaries, aabbs, near, far, 0.03, cone)
    args = with_device(device, *rays, binaries, aabbs, near, far)
    intervals, samples, _ = traverse_grids(*args, step_size=0.03, cone_angle=cone)
    assert_marched(expected, samples_of(intervals, samples))


def crossed(
    rays: tuple[Tensor, Tensor], binaries: Tensor, aabbs: Tensor, near: Tensor, far: Tensor
) -> list[tuple[int, float, float]]:
    """Ray by ray and cell by cell: from one to the next plane between cells, whichever axis comes first."""
    found: list[tuple[int, float, float]] = []
    boxes, shape = aabbs.double().tolist(), binaries.shape[1:]
    for ray, (o, d) in enumerate(zip(rays[0].double().tolist(), rays[1].double().tolist(), strict=True)):
        planes = {float(near[ray]), float(far[ray])}
        for box, a in itertools.product(boxes, range(3)):
            for i in range(shape[a] + 1):
                if d[a] != 0:
                    planes.add((box[a] + (box[a + 3] - box[a]) * i / shape[a] - o[a]) / d[a])
        inside = sorted(t for t in planes if near[ray] <= t <= far[ray])
        last = None
        for start, end in itertools.pairwise(inside):
            if end - start < 1e-9:
                continue
            point = [o[a] + 0.5 * (start + end) * d[a] for a in range(3)]
            i, cell = first_box(point, boxes), None
            if i is not None:
                box = boxes[i]
                index = [min(int((point[a] - box[a]) / (box[a + 3] - box[a]) * shape[a]), shape[a] - 1) for a in range(3)]
                cell = (i, *index) if bool(binaries[(i, *index)]) else None
            if cell is not None and cell == last:
                found[-1] = (ray, found[-1][1], end)
            elif cell is not None:
                found.append((ray, start, end))
            last = cell
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("boxes", ["one", "doubling", "any"])
@pytest.mark.parametrize("step", [0.0, -1.0, None])
def test_without_a_step_size_there_is_an_interval_per_cell(device: str, boxes: str, step: float | None) -> None:
    aabbs = {"one": DOUBLING[:1], "doubling": DOUBLING, "any": ANY_BOXES[:4]}[boxes]
    rays, binaries = random_rays(60), random_grid(len(aabbs), 4, 8, 6)
    near, far = rand(60, seed=8), 1 + 9 * rand(60, seed=9)
    expected = [c for c in crossed(rays, binaries, aabbs, near, far) if c[2] - c[1] > 1e-5]
    args = with_device(device, *rays, binaries, aabbs, near, far)
    intervals, samples, _ = traverse_grids(*args, step_size=step)
    ray, t_starts, t_ends = (x.cpu() for x in samples_of(intervals, samples))
    assert (t_starts < t_ends).all()
    long = t_ends - t_starts > 1e-5
    assert len(expected) > 20
    assert ray[long].tolist() == [r for r, _, _ in expected]
    times = torch.tensor([c[1:] for c in expected])
    torch.testing.assert_close(torch.stack([t_starts, t_ends], -1)[long], times, rtol=2**-22, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("step", [0.05, 0.0])
def test_intervals_share_the_edges_between_samples(device: str, step: float) -> None:
    origins, directions = random_rays(50)
    args = with_device(device, origins, directions, random_grid(3, 8, 8, 8), DOUBLING)
    intervals, samples, _ = traverse_grids(*args, step_size=step)
    ray, t_starts, t_ends = samples_of(intervals, samples)
    vals, left, right, rays = [], [], [], []
    previous = (-1, -1.0)
    for r, start, end in zip(ray.tolist(), t_starts.tolist(), t_ends.tolist(), strict=True):
        if (r, start) == previous:
            left[-1] = True
        else:
            vals.append(start), left.append(True), right.append(False), rays.append(r)
        vals.append(end), left.append(False), right.append(True), rays.append(r)
        previous = (r, end)
    assert len(ray) + 50 < len(vals) < 2 * len(ray) - 50
    assert intervals.vals.tolist() == vals
    assert intervals.is_left.tolist() == left  # type: ignore[union-attr]
    assert intervals.is_right.tolist() == right  # type: ignore[union-attr]
    assert intervals.ray_indices.tolist() == rays  # type: ignore[union-attr]
    torch.testing.assert_close(samples.vals, (t_starts + t_ends) / 2)
    for of_rays, info in ((intervals.ray_indices, intervals.packed_info), (ray, samples.packed_info)):
        assert of_rays is not None
        assert info is not None
        assert of_rays.dtype == info.dtype == torch.int64
        counts = torch.bincount(of_rays, minlength=50)
        torch.testing.assert_close(info, torch.stack([counts.cumsum(0) - counts, counts], -1), rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("over_allocate", [False, True])
@pytest.mark.parametrize(("boxes", "step"), [(DOUBLING, 2.0**-5), (ANY_BOXES, 2.0**-5), (DOUBLING, 0.0)])
def test_traversal_in_parts_gives_all_samples(device: str, over_allocate: bool, boxes: Tensor, step: float) -> None:
    """Steps of a power of 2 are exact in float32, so the parts' lattices are the whole's."""
    origins, directions, binaries, aabbs = with_device(device, *random_rays(30), random_grid(len(boxes), 8, 8, 8), boxes)
    far = torch.full((30,), 9.0, device=device)
    whole = samples_of(*traverse_grids(origins, directions, binaries, aabbs, far_planes=far, step_size=step)[:2])
    near, mask = torch.zeros(30, device=device), torch.ones(30, dtype=torch.bool, device=device)
    limit, parts, rounds = (7 if step > 0 else 2), [], 0
    while mask.any():
        intervals, samples, planes = traverse_grids(
            origins, directions, binaries, aabbs, near, far, step, 0.0, limit, over_allocate, mask
        )
        assert samples.packed_info is not None
        alive = int(mask.sum())
        if over_allocate:
            assert samples.vals.shape == (alive * limit,)
            assert intervals.vals.shape == (2 * alive * limit,)
            per_ray = samples.is_valid.view(alive, limit)  # type: ignore[union-attr]
            assert torch.equal(per_ray.sum(-1), samples.packed_info[mask, 1])
            unused = ~(intervals.is_left | intervals.is_right)  # type: ignore[operator]
            assert not intervals.vals[unused].any()
            assert not samples.vals[~samples.is_valid].any()  # type: ignore[operator]
        counts = samples.packed_info[:, 1]
        assert not counts[~mask].any()
        assert (counts <= limit).all()
        assert (planes[~mask] == near[~mask]).all()
        assert (planes >= near).all()
        parts.append(samples_of(intervals, samples))
        near, mask, rounds = planes, counts == limit, rounds + 1
    joined = [torch.cat(x) for x in zip(*parts, strict=True)]
    order = joined[0].argsort(stable=True)
    assert 3 < rounds < 100
    for a, b in zip(joined, whole, strict=True):
        torch.testing.assert_close(a[order], b, rtol=0, atol=0)
    # From where the traversal has ended there is nothing more.
    assert len(samples_of(*traverse_grids(origins, directions, binaries, aabbs, near, far, step)[:2])[0]) == 0


def test_the_plane_of_a_ray_that_ends_lies_behind_its_box() -> None:
    origins, directions = torch.tensor([[-2.0, 0, 1], [-2, 9, 9], [0, 0, 1]]), torch.tensor([[1.0, 0, 0]] * 3)
    binaries = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    for step, ends in ((0.25, [3.0, 0.5, 1.0]), (0.0, [3.0, 0.5, 1.0])):
        planes = traverse_grids(origins, directions, binaries, DOUBLING[:1], torch.full((3,), 0.5), step_size=step)[2]
        assert planes.tolist() == ends
    planes = traverse_grids(
        origins, directions, binaries, DOUBLING[:1], torch.full((3,), 0.5), torch.full((3,), 0.8), step_size=0.25
    )[2]
    assert planes.tolist() == [0.75, 0.5, 0.75]  # the next step's midpoint, 0.875, is behind the far plane


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("boxes", [DOUBLING, ANY_BOXES])
@pytest.mark.parametrize("step", [0.05, 0.0])
@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize("case", ["no rays", "misses", "empty", "masked", "not a number", "behind far"])
def test_nothing_to_find(device: str, boxes: Tensor, step: float, limit: int | None, case: str) -> None:
    origins, directions = random_rays(0 if case == "no rays" else 6)
    binaries = random_grid(len(boxes), 4, 4, 4, share=0.0 if case == "empty" else 1.0)
    near, far, mask = None, None, None
    if case == "misses":
        origins, directions = torch.full((6, 3), 20.0), torch.ones(6, 3)
    elif case == "not a number":
        origins[:3] *= NAN
        directions[3:] *= NAN
    elif case == "behind far":
        near, far = torch.full((6,), 2.0, device=device), torch.full((6,), 1.0, device=device)
    elif case == "masked":
        mask = torch.zeros(6, dtype=torch.bool, device=device)
    args = with_device(device, origins, directions, binaries, boxes)
    for over_allocate in {False, limit is not None}:
        intervals, samples, planes = traverse_grids(*args, near, far, step, 0.0, limit, over_allocate, mask)
        for x in samples_of(intervals, samples):
            assert x.shape == (0,)
        room = len(origins) * limit if over_allocate and limit and case != "masked" else 0
        assert samples.vals.shape == (room,)
        assert intervals.vals.shape == (2 * room,)
        assert samples.packed_info.tolist() == intervals.packed_info.tolist() == [[0, 0]] * len(origins)  # type: ignore[union-attr]
        assert not planes.isnan().any()
        if case != "empty":
            torch.testing.assert_close(planes, torch.zeros_like(planes) if near is None else near)


@pytest.mark.parametrize("device", DEVICES)
def test_everything_occupied_and_planes_far_away(device: str) -> None:
    origins, directions, aabbs = with_device(device, torch.zeros(1, 3), torch.tensor([[1.0, 0, 0]]), DOUBLING)
    binaries = torch.ones(3, 4, 4, 4, dtype=torch.bool, device=device)
    for far in (None, torch.tensor([1e10], device=device), torch.tensor([1e9], device=device)):
        intervals, samples, planes = traverse_grids(origins, directions, binaries, aabbs, far_planes=far, step_size=0.5)
        assert intervals.vals.tolist() == [0.5 * i for i in range(9)]
        assert samples.vals.tolist() == [0.25 + 0.5 * i for i in range(8)]
        assert planes.tolist() == [4.0]
    tiny = traverse_grids(
        origins,
        directions,
        binaries,
        aabbs,
        step_size=1e-30,
        traverse_steps_limit=4,
        near_planes=torch.ones(1, device=device),
    )
    assert tiny[1].vals.tolist() == [1.0] * 4  # below the spacing of floats: defined, and not for ever


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("boxes", [DOUBLING, ANY_BOXES])
def test_a_ray_without_direction_has_no_samples_or_too_many(device: str, boxes: Tensor) -> None:
    args = with_device(device, torch.zeros(1, 3), torch.zeros(1, 3))
    empty, full = (torch.full((len(boxes), 4, 4, 4), value, device=device) for value in (False, True))
    assert len(traverse_grids(*args, empty, boxes.to(device))[1].vals) == 0
    near, far = (torch.full((1,), t, device=device) for t in (1.0, 2.0))
    assert len(traverse_grids(*args, full, boxes.to(device), near, far, step_size=0.1)[1].vals) == 10
    with pytest.raises(ValueError, match="far"):
        traverse_grids(*args, full, boxes.to(device))


@pytest.mark.parametrize("device", DEVICES)
def test_whether_boxes_are_nested_is_found_out_again_after_a_change(device: str) -> None:
    args = with_device(device, *random_rays(40), random_grid(3, 8, 8, 8))
    moving = DOUBLING.clone().to(device)
    for boxes in (DOUBLING, TRIPLING, DOUBLING):
        moving.copy_(boxes)
        for a, b in zip(
            samples_of(*traverse_grids(*args, moving, step_size=0.1)[:2]),
            samples_of(*traverse_grids(*args, boxes.clone().to(device), step_size=0.1)[:2]),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_wrong_arguments_are_named() -> None:
    rays, binaries = random_rays(4), random_grid(1, 4, 4, 4)
    for kwargs, name in (
        ({"aabbs": DOUBLING}, "aabbs"),
        ({"binaries": binaries.float()}, "binaries"),
        ({"binaries": binaries[:, :0]}, "binaries"),
        ({"near_planes": torch.zeros(3)}, "near_planes"),
        ({"far_planes": torch.zeros(4, 1)}, "far_planes"),
        ({"rays_mask": torch.zeros(4)}, "rays_mask"),
        ({"over_allocate": True}, "over_allocate"),
        ({"cone_angle": -1.0}, "cone_angle"),
        ({"rays_d": torch.zeros(4, 2)}, "rays_d"),
        ({"rays_o": rays[0].double()}, "rays_o"),
    ):
        arguments = {"rays_o": rays[0], "rays_d": rays[1], "binaries": binaries, "aabbs": DOUBLING[:1], **kwargs}
        with pytest.raises(ValueError, match=name):
            traverse_grids(**arguments)  # type: ignore[arg-type]
