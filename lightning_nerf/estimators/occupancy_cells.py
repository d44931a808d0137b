"""The occupancy grid's state: its cells, in one grid or in a grid for each bin in time."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_integer
from lightning_nerf.estimators.base import Estimator
from lightning_nerf.estimators.time_bins import TimeBins, is_range
from lightning_nerf.kept_dtypes import KeptDtypes
from lightning_nerf.ops.memory import check_fits
from lightning_nerf.ops.occupancy import occupancy_update_

_BYTES_OF_CELL = 5, 3  # occs and binaries: of one grid, of bins
_MAX_BINS = 2**16 - 1  # the march's


class Cells(NamedTuple):
    """The cells of one grid, as the ops of ``ops.occupancy`` take them."""

    occs: Tensor  # [L * X * Y * Z] float32
    binaries: Tensor  # [L, X, Y, Z] bool
    mean: Tensor  # [] float32


class OccupancyCells(KeptDtypes, Estimator):
    """Cells of nested boxes, with values, and which of them are occupied; :class:`OccupancyGrid` marches and learns.

    All buffers are only ever written in place, and all are saved. With ``n_times`` = B > 1 there is a grid for each of B
    bins in time, and the values of cells are bfloat16: they are only ever compared with thresholds.

    Args:
        resolution: cells per axis and level, >= 1.
        n_levels: nested boxes, 1 to 8.
        n_times: bins in time; 1: one grid for all times.
    """

    DTYPES: ClassVar[dict[str, torch.dtype]] = dict.fromkeys(("aabb", "occs", "mean", "_zero"), torch.float32)

    aabb: Tensor  # [2, 3] float32, level 0
    occs: Tensor  # [L * X * Y * Z] float32, or [B, L * X * Y * Z] bfloat16: opacity of a step; negative: no camera sees it
    binaries: Tensor  # [L, X, Y, Z] or [B, L, X, Y, Z] bool
    mean: Tensor  # [] or [B] float32, of the visible cells' occs
    bound: Tensor  # [] bool
    _zero: Tensor  # [] float32

    def __init__(self, resolution: int, n_levels: int, n_times: int) -> None:
        super().__init__()
        check_integer("resolution", resolution, 1)
        check_integer("n_levels", n_levels, 1, 8)
        n_cells = n_levels * resolution**3
        if n_cells >= 2**31:
            raise BadArgument(f"resolution: expected fewer than 2**31 cells in all levels, got {resolution}")
        check_integer("n_times", n_times, 1, _MAX_BINS)
        bytes_each = _BYTES_OF_CELL[n_times > 1]
        check_fits("resolution", n_times * n_cells, bytes_each, torch.get_default_device(), what="cells")
        self.n_levels = n_levels
        self.n_times = n_times
        first = () if n_times == 1 else (n_times,)
        shape = (*first, n_levels, resolution, resolution, resolution)
        self.register_buffer("aabb", torch.full((2, 3), float("nan"), dtype=torch.float32))
        self.register_buffer("occs", torch.zeros(*first, n_cells, dtype=torch.bfloat16 if first else torch.float32))
        self.register_buffer("binaries", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(first, dtype=torch.float32))
        self.register_buffer("bound", torch.zeros((), dtype=torch.bool))
        self.register_buffer("_zero", torch.zeros((), dtype=torch.float32), persistent=False)
        self.bins = TimeBins(n_times) if n_times > 1 else None
        self._diagonal: float | None = None  # of the scene box, for the host; None while unbound

    def lay_over(self, box: Tensor) -> None:
        """Lay the first level over a box [2, 3]. The same box again changes nothing; another starts afresh."""
        box = box.to(self.aabb)
        if not bool(box.isfinite().all() & (box[0] < box[1]).all()):
            raise BadArgument(f"scene_box: expected finite corners, minimum below maximum, got {box.tolist()}")
        if not torch.equal(box, self.aabb):
            self.aabb.copy_(box)
            self.occs.zero_()
            self.binaries.fill_(True)
            self.mean.zero_()
            self.bound.fill_(True)
            if self.bins is not None:
                self.bins.restart()
        self._read_box()

    def _read_box(self) -> None:
        low, high = self.aabb.double()  # float32 does not hold the size of every box
        self._diagonal = float((high - low).norm()) if bool(self.bound) else None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if bool(self.bound) != bool(self.aabb.isfinite().all()):
            raise BadArgument(f"{prefix}bound: expected {not self.bound} beside this {prefix}aabb, got {bool(self.bound)}")
        self._read_box()

    def due(self, times: tuple[float, float] | None) -> tuple[Cells, tuple[float, float] | None]:
        """The cells that an update renews next, and the interval of times at which to evaluate them.

        Args:
            times: the first and the last time of the data. Another range than that of the last call starts bins afresh.
        """
        if self.bins is None:
            if times is not None and not is_range(times):
                raise BadArgument(f"times: expected the first and the last time of the data, got {times}")
            return Cells(self.occs, self.binaries, self.mean), times
        if self.bins.learn(times):
            self.occs.clamp_(max=0)  # negative ones, which no camera sees, stay so
            torch.ge(self.occs.view_as(self.binaries), 0, out=self.binaries)
            self.mean.zero_()
        b = self.bins.current
        return Cells(self.occs[b].float(), self.binaries[b], self.mean[b]), self.bins.window

    def renew(self, cells: Cells, newest: Tensor, decay: float, threshold: float) -> None:
        """Take the newest values [L * X * Y * Z] into the cells that were :meth:`due`, in place."""
        if self.bins is None:
            occupancy_update_(*cells, newest, decay=decay, threshold=threshold)
            return
        # As they are kept: where a field's density is constant, all values have to equal their mean.
        occupancy_update_(*cells, _cut_to_bfloat16(newest), decay=decay, threshold=threshold)
        self.occs[self.bins.current].copy_(_cut_to_bfloat16(cells.occs))
        self.bins.finish(self.binaries, cells.occs >= 0)

    def blank(self) -> Cells:
        """A grid of visible and occupied cells."""
        binaries = torch.ones_like(self.binaries if self.bins is None else self.binaries[0])
        return Cells(torch.zeros(binaries.numel(), device=binaries.device, dtype=torch.float32), binaries, self._zero)

    def close(self, visible: Tensor) -> None:
        """Close the cells where ``visible`` [L, X, Y, Z] is False, for good and in all bins; others keep their state."""
        self.occs.masked_fill_(~visible.view(-1), -1.0)
        self.binaries.logical_and_(visible)

    def occupied_share(self) -> Tensor:
        """Share of the cells of all levels, and of all bins, that are occupied, 0-d float32, on the grid's device."""
        return self.binaries.count_nonzero() / self.binaries.numel()

    def occupied_shares(self) -> Tensor:
        """Share of the cells of each bin that are occupied, [n_times] float32, on the grid's device."""
        cells = self.binaries.view(self.n_times, -1)
        return cells.count_nonzero(-1) / cells.shape[1]


def _cut_to_bfloat16(values: Tensor) -> Tensor:
    """float32 values, in place, as bfloat16 cut toward 0: finite ones stay finite, and any decay makes them smaller."""
    values.view(torch.int32).bitwise_and_(-(2**16))
    return values
