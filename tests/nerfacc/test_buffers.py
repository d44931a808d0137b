"""What programs do to an estimator's buffers and methods: assign, edit by way of ``.data``, override."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_nerf import nerfacc
from tests.nerfacc.occ_grids import BOX, SHAPE, estimator, random_rays
from tests.ops.harness import DEVICES, rand

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "permuted": lambda t: t.permute(*reversed(range(t.ndim))).contiguous().permute(*reversed(range(t.ndim))),
    "expanded": lambda t: t[:1].expand(t.shape),
    "spaced": lambda t: torch.stack([t, t], -1)[..., 0],
}


def points(x: Tensor) -> Tensor:
    return x.norm(dim=-1).sin().abs()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["binaries", "occs", "aabbs"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_buffers_may_be_assigned_in_any_layout(device: str, name: str, layout: str) -> None:
    found = []
    for is_plain in (False, True):
        torch.manual_seed(0)
        grid = estimator(device, share=0.5)
        grid.occs.copy_(rand(grid.occs.numel(), seed=2))
        value = LAYOUTS[layout](getattr(grid, name).clone())
        setattr(grid, name, value.contiguous() if is_plain else value)
        results = [*grid.sampling(*random_rays(device), render_step_size=0.1), *grid._get_all_cells()]
        for step in (0, 512):
            grid._update(step, points)
        grid.mark_invisible_cells(torch.eye(3, device=device)[None], torch.eye(4, device=device)[None], 8, 8)
        found.append([*results, *grid.state_dict().values()])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("edit", ["in place", "exchanged"])
def test_boxes_that_are_edited_by_way_of_data_are_seen(device: str, edit: str) -> None:
    grid = estimator(device, share=0.5)
    rays = random_rays(device)
    grid.sampling(*rays, render_step_size=0.05)  # the boxes are nested: remembered
    for factor in (1.5, 1.0, 1.25):
        boxes = nerfacc.OccGridEstimator(BOX, list(SHAPE), 2).aabbs.to(device)
        boxes[1] *= factor
        if edit == "in place":
            grid.aabbs.data.copy_(boxes)
        else:
            grid.aabbs.data = boxes.clone()
        fresh = estimator(device, share=0.5)
        fresh.aabbs.copy_(boxes)
        for a, b in zip(
            grid.sampling(*rays, render_step_size=0.05), fresh.sampling(*rays, render_step_size=0.05), strict=True
        ):
            assert torch.equal(a, b)


class Half(nerfacc.OccGridEstimator):
    """Looks at the even cells only."""

    def _get_all_cells(self) -> list[Tensor]:
        return [cells[cells % 2 == 0] for cells in super()._get_all_cells()]

    def _sample_uniform_and_occupied_cells(self, n: int) -> list[Tensor]:
        return [cells[cells % 2 == 0] for cells in super()._sample_uniform_and_occupied_cells(n)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("step", [0, 512])
@pytest.mark.parametrize("how", ["subclass", "instance"])
def test_overrides_choose_the_cells(device: str, step: int, how: str) -> None:
    torch.manual_seed(0)
    if how == "subclass":
        grid: nerfacc.OccGridEstimator = Half(BOX, list(SHAPE), 2).to(device)
    else:
        grid = estimator(device)
        even = [torch.arange(0, 192, 2, device=device)] * 2
        grid._get_all_cells = lambda: even  # type: ignore[method-assign]
        grid._sample_uniform_and_occupied_cells = lambda n: even  # type: ignore[method-assign]
    grid._update(step, lambda x: torch.ones_like(x[:, 0]))
    occs = grid.occs.view(2, -1)
    assert (occs[:, 1::2] == 0).all()
    assert (occs[:, ::2] == 1).sum() > 20
    grid.mark_invisible_cells(torch.eye(3, device=device)[None], torch.eye(4, device=device)[None], 0, 0)
    assert (grid.occs.view(2, -1)[:, ::2] == -1).all()
    assert (grid.occs.view(2, -1)[:, 1::2] == 0).all()


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([torch.arange(3)], "_get_all_cells: expected indices for each of 2 levels, got 1"),
        ([torch.arange(3), torch.tensor([192])], r"_get_all_cells: expected indices in \[0, 192\), got 192 to 192"),
        ([torch.arange(3), torch.tensor([-1])], r"_get_all_cells: expected indices in \[0, 192\), got -1 to -1"),
        ([torch.arange(3), torch.ones(192)], "_get_all_cells: expected integers, got torch.float32"),
        ([torch.arange(3), [1]], "_get_all_cells: expected a tensor of indices for each level, got list"),
    ],
)
def test_cells_that_are_not_there_are_named(cells: list[Tensor], message: str) -> None:
    class Wrong(nerfacc.OccGridEstimator):
        def _get_all_cells(self) -> list[Tensor]:
            return cells

    with pytest.raises(ValueError, match=message):
        Wrong(BOX, list(SHAPE), 2).update_every_n_steps(0, points)


def test_an_override_may_choose_nothing() -> None:
    class Nothing(nerfacc.OccGridEstimator):
        def _get_all_cells(self) -> list[Tensor]:
            return [self.grid_indices[:0]] * self.levels

    grid = Nothing(BOX, list(SHAPE), 2)
    grid.update_every_n_steps(0, points)
    assert not grid.occs.any()
