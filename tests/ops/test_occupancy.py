from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.occupancy import (
    cell_points,
    cover_reference,
    mark_invisible_cells,
    newest_reference,
    occupancy_cover,
    occupancy_newest,
    occupancy_select,
    occupancy_update_,
    points_reference,
    select_reference,
    update_reference,
)
from lightning_nerf.ops.random import make_key
from tests.ops.harness import DEVICES, assert_detected, check_op, generator, rand

AABB = torch.tensor([[-1.0, 0.0, 2.0], [2.0, 0.5, 3.0]])


def grid(*shape: int, share: float, seed: int = 0) -> Tensor:
    return rand(*shape, seed=seed) < share


def one_occupied(cell: int, *shape: int) -> Tensor:
    binaries = torch.zeros(shape, dtype=torch.bool)
    binaries.view(-1)[cell] = True
    return binaries


SELECT_CASES = {
    "one cell": (torch.ones(1, 1, 1, 1, dtype=torch.bool), 3, 3),
    "no draws": (grid(1, 4, 4, 4, share=0.5), 0, 0),
    "nothing occupied": (torch.zeros(2, 4, 5, 3, dtype=torch.bool), 7, 9),
    "everything occupied": (torch.ones(1, 8, 8, 8, dtype=torch.bool), 100, 100),
    "last cell occupied": (one_occupied(2 * 11**3 - 1, 2, 11, 11, 11), 0, 50),  # 1331: no multiple of a block
    "first cell of a block occupied": (one_occupied(4096, 1, 17, 17, 17), 5, 50),
    "no multiple of a block": (grid(3, 11, 13, 17, share=0.1), 501, 777),
    "one level empty": (torch.cat([grid(1, 9, 9, 9, share=0.0), grid(1, 9, 9, 9, share=0.02)]), 33, 65),
    "many blocks": (grid(1, 64, 64, 64, share=0.01), 4097, 5000),
}
# More blocks of 4096 cells than the CUDA scan takes in one round, which are 1024.
MANY_ROUNDS = (grid(2, 128, 128, 260, share=0.001), 1000, 3000)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [*SELECT_CASES, "many rounds"])
def test_selection_is_that_of_the_reference(device: str, case: str) -> None:
    args = MANY_ROUNDS if case == "many rounds" else SELECT_CASES[case]
    for key in (make_key(0), make_key(2**35 + 1, rank=2, step=99)):
        for name, reference in (("occupancy_select", select_reference), ("occupancy_cover", cover_reference)):
            check_op(name, reference, (key, *args), device=device, rtol=0, atol=0, opcheck=case != "many rounds")


def test_selection_detects_an_inclusive_rank() -> None:
    def mutated(key: Tensor, binaries: Tensor, n_uniform: int, n_occupied: int) -> Tensor:
        return select_reference(key, binaries.roll(1, -1), n_uniform, n_occupied)

    args = (make_key(0), *SELECT_CASES["no multiple of a block"])
    assert_detected(lambda: check_op("occupancy_select", mutated, args, device="cpu", rtol=0, atol=0))


@pytest.mark.parametrize("device", DEVICES)
def test_selected_cells_are_in_their_level_and_occupied(device: str) -> None:
    binaries = grid(3, 8, 8, 8, share=0.2).to(device)
    cells = occupancy_select(make_key(1, device=device), binaries, 200, 300).view(3, 500).long()
    for level in range(3):
        assert (cells[level] // 512 == level).all()
        assert binaries.view(-1)[cells[level, 200:]].all()
        assert not binaries.view(-1)[cells[level, :200]].all()


@pytest.mark.parametrize("device", DEVICES)
def test_a_cover_takes_all_occupied_cells_of_a_level_that_has_few(device: str) -> None:
    binaries = torch.cat([grid(1, 8, 8, 8, share=share) for share in (0.1, 0.0, 0.9)]).to(device)
    key = make_key(1, device=device)
    few = int(binaries[0].sum())
    assert 20 < few < 100 < int(binaries[2].sum())
    for n in (few, few + 1, 3 * few - 1):
        cells, drawn = (f(key, binaries, 7, n).view(3, 7 + n) for f in (occupancy_cover, occupancy_select))
        times = torch.bincount(cells[0, 7:].long(), minlength=512)
        assert torch.equal(times > 0, binaries[0].view(-1))
        assert int(times[times > 0].min()) == n // few
        assert int(times.max()) == -(-n // few)
        assert torch.equal(cells[:, :7], drawn[:, :7])
        assert torch.equal(cells[1:], drawn[1:])  # one level has nothing, one too much
    assert torch.equal(occupancy_cover(key, binaries, 7, few - 1), occupancy_select(key, binaries, 7, few - 1))


def chi_square(counts: Tensor) -> float:
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("device", DEVICES)
def test_selection_is_uniform(device: str) -> None:
    """Chi-square over k cells has mean k - 1 and variance 2 (k - 1); five standard deviations."""
    binaries = grid(1, 10, 10, 10, share=0.3, seed=4).to(device)
    n = 100_000
    cells = occupancy_select(make_key(11, device=device), binaries, n, n).long()
    everywhere = torch.bincount(cells[:n], minlength=1000)
    among = torch.bincount(cells[n:], minlength=1000)[binaries.view(-1)]
    for counts in (everywhere, among):
        freedom = counts.numel() - 1
        assert abs(chi_square(counts) - freedom) < 5 * (2 * freedom) ** 0.5


def test_selection_depends_on_seed_rank_and_step() -> None:
    binaries = grid(1, 32, 32, 32, share=0.5)
    keys = [make_key(0), make_key(1), make_key(0, rank=1), make_key(0, step=1)]
    draws = [occupancy_select(key, binaries, 500, 500) for key in keys]
    torch.testing.assert_close(occupancy_select(make_key(0), binaries, 500, 500), draws[0], rtol=0, atol=0)
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert (a == b).float().mean() < 0.02


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [0, 1, 5000])
def test_points_are_those_of_the_reference(device: str, n: int) -> None:
    cells = torch.randint(0, 3 * 5 * 6 * 7, (n,), generator=generator(0)).int()
    # Coordinates up to 8 (level 2) through six roundings, with or without fused multiply-add: 8 * 2^-24 * 6.
    check_op("occupancy_points", points_reference, (make_key(5), cells, AABB, 5, 6, 7), device=device, rtol=0, atol=3e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_points_fill_their_cells(device: str) -> None:
    resolution = (4, 2, 8)
    n = 3 * 64
    cells = torch.arange(n, dtype=torch.int32).repeat(200).to(device)
    points = cell_points(make_key(0, device=device), cells, AABB.to(device), resolution).cpu().double()
    size = (AABB[1] - AABB[0]).double()
    for level in range(3):
        center = AABB.double().mean(0)
        fraction = ((points - center) / size / 2**level + 0.5).view(200, n, 3)[:, level * 64 : (level + 1) * 64]
        place = fraction * torch.tensor(resolution)
        index = torch.cartesian_prod(*(torch.arange(r) for r in resolution))
        inside = place - index
        assert inside.min() > -1e-5
        assert inside.max() < 1 + 1e-5
        # 12,800 draws: the standard error of the mean is 0.0026, that of the variance 0.0007; five of each.
        torch.testing.assert_close(inside.mean((0, 1)), torch.full((3,), 0.5, dtype=torch.float64), rtol=0, atol=0.013)
        torch.testing.assert_close(inside.var((0, 1)), torch.full((3,), 1 / 12, dtype=torch.float64), rtol=0, atol=0.0035)
    assert not torch.equal(points[:n], points[n : 2 * n])


def new_values(n: int, seed: int) -> Tensor:
    """Values with everything in them that may come out of a field."""
    values = rand(n, seed=seed, low=-0.2)
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -1.0, -0.0, 0.0, 1e-45, 3.4e38])
    where = torch.randint(0, max(n, 1), (n // 3,), generator=generator(seed))
    values[where] = odd[torch.arange(n // 3) % len(odd)]
    return values


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("m", "n"), [(0, 0), (0, 5), (1, 1), (3000, 17), (3000, 5000), (40_000, 50_000)])
def test_newest_is_that_of_the_reference(device: str, m: int, n: int) -> None:
    cells = torch.randint(-2, n + 3, (m,), generator=generator(1)).int()
    args = (cells, new_values(m, 2), n)
    check_op("occupancy_newest", newest_reference, args, device=device, rtol=0, atol=0)
    newest = occupancy_newest(cells.to(device), args[1].to(device), n)
    assert not newest.signbit()[newest >= 0].any()
    order = torch.randperm(m, generator=generator(3))
    shuffled = occupancy_newest(cells[order].to(device), args[1][order].to(device), n)
    torch.testing.assert_close(shuffled, newest, rtol=0, atol=0)


def test_newest_detects_the_last_value() -> None:
    def mutated(cells: Tensor, values: Tensor, n: int) -> Tensor:
        return values.new_full((n,), -1.0).scatter_(0, cells.long(), values)

    cells = torch.randint(0, 10, (100,), generator=generator(0)).int()
    args = (cells, rand(100, seed=0), 10)
    assert_detected(lambda: check_op("occupancy_newest", mutated, args, device="cpu", rtol=0, atol=0))


def state(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """occs (a tenth invisible), binaries, mean, newest (half of them evaluated)."""
    occs = rand(n, seed=seed) ** 4 * 0.2
    occs[rand(n, seed=seed + 1) < 0.1] = -1.0
    newest = rand(n, seed=seed + 2) ** 8 * 0.1
    newest[rand(n, seed=seed + 3) < 0.5] = -1.0
    return occs, rand(n, seed=seed + 4) < 0.5, torch.tensor(7.0), newest


UPDATE_CASES = {
    "empty": state(0),
    "one": state(1),
    "ragged": state(1021),
    "large": state(100_003),
    "more than the blocks take at once": state(2**20 + 2**17 + 5),
    "nothing evaluated": (*state(5000)[:3], torch.full((5000,), -1.0)),
    "nothing visible": (torch.full((5000,), -1.0), *state(5000)[1:]),
    "all zero": (torch.zeros(5000), torch.ones(5000, dtype=torch.bool), torch.tensor(1.0), torch.zeros(5000)),
    "constant": (torch.full((5000,), 0.003), *state(5000)[1:3], torch.full((5000,), 0.003)),
    "huge": (torch.full((5000,), 3e38), *state(5000)[1:3], torch.full((5000,), 3e38)),
}


def check_update(
    mutated: Callable[..., None], case: str, device: str, decay: float = 0.95, threshold: float = 0.01
) -> None:
    expected = [t.to(device).clone() for t in UPDATE_CASES[case]]
    actual = [t.to(device).clone() for t in UPDATE_CASES[case]]
    pointers = [t.data_ptr() for t in actual]
    mutated(*expected, decay, threshold)
    occs, binaries, mean, newest = actual
    occupancy_update_(occs, binaries, mean, newest, decay=decay, threshold=threshold)
    # Both multiply in float32 and sum the mean in float64: it agrees to the last bit of its float32.
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)
    assert [t.data_ptr() for t in actual] == pointers


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", UPDATE_CASES)
def test_update_is_that_of_the_reference(device: str, case: str) -> None:
    check_update(update_reference, case, device)
    check_update(update_reference, case, device, decay=0.0, threshold=0.0)
    check_update(update_reference, case, device, decay=1.0, threshold=1e9)
    if case in ("empty", "ragged"):
        args = [t.to(device).clone() for t in UPDATE_CASES[case]]
        torch.library.opcheck(torch.ops.lightning_nerf.occupancy_update_.default, (*args, 0.95, 0.01))


def test_update_detects_a_sum_instead_of_the_maximum() -> None:
    def mutated(occs: Tensor, binaries: Tensor, mean: Tensor, newest: Tensor, decay: float, threshold: float) -> None:
        both = torch.where((occs >= 0) & (newest >= 0), occs * decay + newest, -1.0)
        update_reference(occs, binaries, mean, both, decay, threshold)

    assert_detected(lambda: check_update(mutated, "ragged", "cpu"))


@pytest.mark.filterwarnings("ignore:lightning-nerf runs its pure-torch reference")
def test_reference_works_in_place_through_the_dispatcher() -> None:
    expected, actual = ([t.clone() for t in UPDATE_CASES["ragged"]] for _ in range(2))
    update_reference(*expected, 0.9, 0.01)
    op = torch.ops.lightning_nerf.occupancy_update_.default
    assert op._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *actual, 0.9, 0.01) is None  # type: ignore[attr-defined]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_rules_of_the_update(device: str) -> None:
    occs = torch.tensor([0.5, 0.5, 0.5, -1.0, 0.0], device=device)
    newest = torch.tensor([0.1, 0.9, -1.0, 0.9, 0.0], device=device)
    binaries = torch.ones(5, dtype=torch.bool, device=device)
    mean = torch.zeros((), device=device)
    occupancy_update_(occs, binaries, mean, newest, decay=0.5, threshold=0.3)
    torch.testing.assert_close(occs.cpu(), torch.tensor([0.25, 0.9, 0.5, -1.0, 0.0]), rtol=0, atol=0)
    torch.testing.assert_close(mean.cpu(), torch.tensor(1.65 / 4))
    assert binaries.tolist() == [False, True, True, False, False]  # threshold 0.3 is below the mean
    occupancy_update_(occs, binaries, mean, torch.full_like(occs, -1.0), decay=0.5, threshold=0.9)
    assert binaries.tolist() == [False, True, True, False, False]  # the mean, 0.41
    occupancy_update_(occs, binaries, mean, torch.full_like(occs, -1.0), decay=0.5, threshold=0.2)
    assert binaries.tolist() == [True, True, True, False, False]


def test_a_constant_field_fills_the_grid() -> None:
    for value in (1e-30, 0.1, 1 / 3, 3e38):
        occs, binaries, mean = torch.zeros(100_000), torch.zeros(100_000, dtype=torch.bool), torch.zeros(())
        occupancy_update_(occs, binaries, mean, torch.full_like(occs, value), decay=0.95, threshold=0.01)
        assert binaries.all()


@pytest.mark.parametrize("where", ["kernel", "reference"])
def test_bits_do_not_depend_on_the_number_of_threads(where: str) -> None:
    cells = torch.randint(0, 50_000, (200_000,), generator=generator(0)).int()
    values, key, binaries = new_values(200_000, 1), make_key(0), grid(2, 50, 50, 10, share=0.3)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            occs, binary, mean, _ = (t.clone() for t in state(300_000))
            if where == "kernel":
                selected = occupancy_select(key, binaries, 40_000, 40_000)
                newest = occupancy_newest(cells, values, 300_000)
                occupancy_update_(occs, binary, mean, newest, decay=0.95, threshold=0.5)
            else:
                selected = select_reference(key, binaries, 40_000, 40_000)
                newest = newest_reference(cells, values, 300_000)
                update_reference(occs, binary, mean, newest, 0.95, 0.5)
            results.append((selected, newest, occs, binary, mean))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def camera(position: list[float], right: list[float], up: list[float], backwards: list[float]) -> Tensor:
    return torch.tensor([right, up, backwards, position]).T


INTRINSICS = torch.tensor([50.0, 50.0, 50.0, 50.0])  # 100 x 100 pixels: 90 degrees wide and high
BOX = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
X, Y, Z = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]


def visible(c2w: Tensor, device: str = "cpu", levels: int = 1, intrinsics: Tensor = INTRINSICS, **kwargs: float) -> Tensor:
    occs, binaries = torch.zeros(levels * 8**3, device=device), torch.ones(levels, 8, 8, 8, dtype=torch.bool, device=device)
    mark_invisible_cells(occs, binaries, BOX.to(device), c2w.to(device), intrinsics.to(device), 100, 100, **kwargs)
    assert torch.equal(occs >= 0, binaries.view(-1))
    assert set(occs.tolist()) <= {0.0, -1.0}
    return binaries.cpu()


@pytest.mark.parametrize("device", DEVICES)
def test_a_camera_sees_what_lies_before_it(device: str) -> None:
    # At the origin, looking along -z, 90 degrees: |x| <= -z and |y| <= -z, and a cell's half diagonal around that.
    seen = visible(camera([0.0, 0.0, 0.0], X, Y, Z)[None], device)[0]
    center = torch.arange(8) * 0.25 - 0.875
    x, y, z = torch.meshgrid(center, center, center, indexing="ij")
    margin = torch.minimum((-z - x.abs()) / 2**0.5, (-z - y.abs()) / 2**0.5)
    radius = 0.125 * 3**0.5
    assert torch.equal(seen, (margin >= -radius) & (-z >= -radius))
    assert seen[:, :, :3].sum() > seen[:, :, 5:].sum() == 0


def test_rows_count_downwards_and_columns_to_the_right() -> None:
    c2w = camera([0.0, 0.0, 8.0], X, Y, Z)[None]
    upper = visible(c2w, intrinsics=torch.tensor([50.0, 50.0, 50.0, 100.0]))[0]  # the optical axis meets the lowest row
    assert upper[:, 5:].all()
    assert not upper[:, :2].any()
    right = visible(c2w, intrinsics=torch.tensor([50.0, 50.0, 0.0, 50.0]))[0]
    assert right[5:].all()
    assert not right[:2].any()


def test_cameras_unite_levels_nest_and_near_cuts() -> None:
    front = camera([0.0, 0.0, 4.0], X, Y, Z)
    assert visible(front[None]).all()
    away = camera([0.0, 0.0, 4.0], [-1.0, 0.0, 0.0], Y, [0.0, 0.0, -1.0])
    assert not visible(away[None]).any()
    assert visible(torch.stack([away, front])).all()
    assert not visible(torch.zeros(0, 3, 4)).any()
    near = visible(front[None], near=4.5)[0]
    assert near[:, :, :3].all()
    assert not near[:, :, 5:].any()  # the farthest corner is 4.1 away
    levels = visible(camera([0.0, 0.0, 0.0], X, Y, Z)[None], levels=3)
    assert torch.equal(levels[0], levels[1])  # seen from the common center, all boxes look the same
    assert torch.equal(levels[0], levels[2])


def test_marking_keeps_the_state_of_seen_cells_and_works_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    c2w = camera([0.0, 0.0, 0.0], X, Y, Z)[None].expand(2**14, 3, 4)  # 64 cells at a time
    occs, binaries = rand(512, seed=0), grid(1, 8, 8, 8, share=0.5)
    before, seen = (occs.clone(), binaries.clone()), visible(c2w[:1])
    mark_invisible_cells(occs, binaries, BOX, c2w, INTRINSICS.expand(2**14, 4), 100, 100)
    torch.testing.assert_close(occs, torch.where(seen.view(-1), before[0], -1.0), rtol=0, atol=0)
    assert torch.equal(binaries, before[1] & seen)


def test_bad_arguments_are_named() -> None:
    key, binaries = make_key(0), grid(1, 2, 2, 2, share=0.5)
    with pytest.raises(ValueError, match=r"binaries: expected dtype torch.bool, got torch.float32"):
        occupancy_select(key, binaries.float(), 1, 1)
    with pytest.raises(ValueError, match=r"binaries: expected shape \[L, X, Y, Z\], got \[2, 2, 2\]"):
        occupancy_select(key, binaries[0], 1, 1)
    with pytest.raises(ValueError, match=r"1 to 2\*\*31 - 1 cells"):
        occupancy_select(key, binaries[:, :0], 1, 1)
    with pytest.raises(ValueError, match="n_uniform >= 0"):
        occupancy_select(key, binaries, -1, 1)
    with pytest.raises(ValueError, match=r"cells: expected dtype torch.int32, got torch.int64"):
        cell_points(key, torch.zeros(3, dtype=torch.int64), BOX, (2, 2, 2))
    with pytest.raises(ValueError, match=r"resolution: expected three numbers >= 1"):
        cell_points(key, torch.zeros(3).int(), BOX, (2, 0, 2))
    with pytest.raises(ValueError, match=r"values: expected shape \[3\], got \[4\]"):
        occupancy_newest(torch.zeros(3).int(), torch.zeros(4), 8)
    with pytest.raises(ValueError, match=r"values: expected dtype torch.float32, got torch.float16"):
        occupancy_newest(torch.zeros(3).int(), torch.zeros(3).half(), 8)
    occs, mean = torch.zeros(8), torch.zeros(())
    with pytest.raises(ValueError, match=r"binaries: expected 8 cells"):
        occupancy_update_(occs, binaries[:, :1], mean, occs.clone(), decay=0.9, threshold=0.1)
    with pytest.raises(ValueError, match="contiguous"):
        occupancy_update_(torch.zeros(16)[::2], binaries, mean, occs, decay=0.9, threshold=0.1)
    with pytest.raises(ValueError, match=r"decay=1\.5"):
        occupancy_update_(occs, binaries, mean, occs.clone(), decay=1.5, threshold=0.1)
    with pytest.raises(ValueError, match=r"c2w: expected shape \[V, 3, 4\], got \[1, 4, 4\]"):
        mark_invisible_cells(occs, binaries, BOX, torch.zeros(1, 4, 4), INTRINSICS, 1, 1)


def test_non_contiguous_inputs() -> None:
    binaries = grid(8, 6, 7, 2, share=0.3).permute(3, 0, 1, 2)
    key = make_key(3)
    torch.testing.assert_close(
        occupancy_select(key, binaries, 50, 50), occupancy_select(key, binaries.contiguous(), 50, 50), rtol=0, atol=0
    )
    cells = torch.arange(40, dtype=torch.int32)[::2]
    torch.testing.assert_close(
        cell_points(key, cells, BOX, (4, 4, 4)), cell_points(key, cells.contiguous(), BOX, (4, 4, 4)), rtol=0, atol=0
    )
