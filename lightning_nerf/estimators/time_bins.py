"""Time in the occupancy grid: which bin a ray reads, which bin an update renews, and when it looks."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_tensor
from lightning_nerf.kept_dtypes import KeptDtypes

_MARGIN = 0.5  # of a bin's width: an update looks so far beyond both ends of its bin
_RECENT = 8  # visited bins whose union stands for those without a visit: few, because a field's first steps are noise


class TimeBins(KeptDtypes):
    """``n`` bins of equal width between the first and the last time of the data, renewed in turn.

    Successive updates visit bins that lie far apart in time; n updates visit all.

    >>> import torch
    >>> from lightning_nerf.estimators.time_bins import TimeBins
    >>> bins = TimeBins(4)
    >>> bins.learn((0.0, 1.0)), bins.of(torch.tensor([-1.0, 0.1, 0.3, 0.9, 1.0, 7.0])).tolist()
    (True, [0, 0, 1, 3, 3, 3])

    Args:
        n: number of bins, >= 2.
    """

    DTYPES: ClassVar[dict[str, torch.dtype]] = {"span": torch.float32}

    span: Tensor  # [2] float32, the first and the last time; NaN while unknown
    updates: Tensor  # [] int64, since the span is known

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        # Coprime to n, so that n updates visit all bins; near the golden section, so that a few of them are spread evenly.
        self._stride = min((s for s in range(1, n) if math.gcd(s, n) == 1), key=lambda s: abs(s - 0.618 * n))
        self.register_buffer("span", torch.full((2,), math.nan, dtype=torch.float32))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._updates = 0
        self._span: tuple[float, float] | None = None

    def _read(self) -> None:
        """Keep the buffers' values on the host, so that an update need not wait for the device."""
        self._updates, (first, last) = int(self.updates), self.span.tolist()
        self._span = None if math.isnan(first) else (first, last)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        first, last = self.span.tolist()
        if not (math.isnan(first) and math.isnan(last)) and not (is_range((first, last)) and first <= last):
            raise BadArgument(f"{prefix}span: expected a first and a last time, got {first}, {last}")
        if int(self.updates) < 0:
            raise BadArgument(f"{prefix}updates: expected a number >= 0, got {int(self.updates)}")
        self._read()

    def learn(self, times: tuple[float, float] | None) -> bool:
        """Learn the first and the last time of the data.

        Returns whether they are new; then the bins' content is void.
        """
        if times is None or not is_range(times):
            expected = f"the first and the last time of the data, since the grid has {self.n} bins in time"
            remedy = "; for a field that wants no times give the grid n_times=1" if times is None else ""
            raise BadArgument(f"times: expected {expected}, got {times}{remedy}")
        first, last = torch.tensor(sorted(map(float, times)), dtype=torch.float32).tolist()  # as the buffer keeps them
        if (first, last) == self._span:
            return False
        self._span = first, last
        self.span[0].fill_(first)
        self.span[1].fill_(last)
        self.restart()
        return True

    def _count(self, updates: int) -> None:
        self._updates = updates
        self.updates.fill_(updates)

    def restart(self) -> None:
        """Forget all visits: the bins' content is void."""
        self._count(0)

    @property
    def is_complete(self) -> bool:
        """Whether every bin has been visited."""
        return self._updates >= self.n

    @property
    def current(self) -> int:
        """The bin that the next update visits."""
        return self._visited(self._updates)

    def _visited(self, update: int) -> int:
        return update * self._stride % self.n

    @property
    def window(self) -> tuple[float, float]:
        """The interval of times at which that update looks: the bin's own, and half a width more at both ends.

        A ray reads the bin that holds its time. Few draws fall at the very end of a bin; the overlap makes sure that a
        thing which enters a cell then is found.
        """
        assert self._span is not None
        first, last = self._span
        width = (last - first) / self.n
        return (
            max(first, first + (self.current - _MARGIN) * width),
            min(last, first + (self.current + 1 + _MARGIN) * width),
        )

    def of(self, times: Tensor) -> Tensor:
        """The bins [R] int32 that hold the times [R]; the nearest, where none does."""
        first, last = self.span.unbind()
        place = (times - first) / (last - first) * self.n
        return place.nan_to_num(0.0).clamp(0, self.n - 1).int()  # nan: all times are one, or none is known

    def of_rays(self, binaries: Tensor, times: Tensor | None, n_rays: int) -> tuple[Tensor, Tensor | None]:
        """The ``occupancy`` and ``bins`` of :func:`~lightning_nerf.ops.march.march` for rays with these times [R].

        Where all rays share one time, as those of a frame do, it is that bin's grid alone.
        """
        if times is None:
            raise BadArgument(
                f"rays.times: expected a time for each ray, since the grid has {self.n} bins in time, got None"
            )
        check_tensor("rays.times", times, (n_rays,), torch.float32)
        if n_rays == 0 or (n_rays > 1 and times.stride(0) != 0):  # one number, expanded, has stride 0
            return binaries, self.of(times)
        bins = self.of(times[:1])
        if bins.device.type == "cpu" and not torch.compiler.is_compiling():
            return binaries[int(bins)], None
        return binaries.index_select(0, bins)[0], None

    def around(self, binaries: Tensor) -> Tensor:
        """[L, X, Y, Z] bool: cells near occupied ones in time or space, where an update has to look often.

        These are the cells that are occupied in the current bin or in one of its two neighbors, and the 26 cells around
        each. Moving things are found there first, and cells that hold only a corner of a thing need more draws.
        """
        return _grown(binaries[max(0, self.current - 1) : self.current + 2].any(0))

    def finish(self, binaries: Tensor, visible: Tensor) -> None:
        """Count the update of the current bin, whose ``binaries`` are new; in place.

        In a bin's first visit one draw fell into each cell, so cells around occupied ones are opened, too. Bins that still
        wait for their first visit get the union of the last visited ones.

        Args:
            binaries: [B, L, X, Y, Z] bool.
            visible: [L * X * Y * Z] bool, cells that may be occupied.
        """
        self._count(self._updates + 1)
        if self._updates > self.n:
            return
        newest = binaries[self._visited(self._updates - 1)]
        newest.copy_(_grown(newest)).logical_and_(visible.view_as(newest))
        recent = range(max(0, self._updates - _RECENT), self._updates)
        union = torch.stack([binaries[self._visited(update)] for update in recent]).any(0)
        for later in range(self._updates, self.n):
            binaries[self._visited(later)].copy_(union)


def is_range(times: Sequence[object]) -> bool:
    """Whether these are two times, finite in float32, with a difference that is finite, too."""
    values = [float(time) for time in times if isinstance(time, (numbers.Real, Tensor))]
    if len(times) != 2 or len(values) != 2:
        return False
    first, last = torch.tensor(values, dtype=torch.float32)
    return bool((last - first).isfinite())


def _grown(cells: Tensor) -> Tensor:
    """[L, X, Y, Z] bool: ``cells`` and the 26 cells around each."""
    for axis in (1, 2, 3):
        size, grown = cells.shape[axis], cells.clone()
        grown.narrow(axis, 1, size - 1).logical_or_(cells.narrow(axis, 0, size - 1))
        grown.narrow(axis, 0, size - 1).logical_or_(cells.narrow(axis, 1, size - 1))
        cells = grown
    return cells
