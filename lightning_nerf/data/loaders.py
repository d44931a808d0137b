"""Loaders that yield only numbers: a training batch is a step's, an evaluation batch a view's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence


class StepNumbers:
    """Endless step numbers from ``start()`` on, read at the beginning of each epoch: a resumed run continues its count.

    A plain iterable, as is :class:`ViewIndices`: Lightning advises to give a ``DataLoader`` more workers, here in vain.
    """

    def __init__(self, start: Callable[[], int]) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        step = self.start()
        while True:
            yield step
            step += 1


class ViewIndices:
    """``(index, name)`` of every world-th view, from view ``rank`` on; cyclic, so that all ranks have the same number."""

    def __init__(self, names: Sequence[str], rank: int = 0, world: int = 1) -> None:
        self.names, self.rank, self.world = names, rank, world

    def __len__(self) -> int:
        return -(-len(self.names) // self.world)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        for i in range(len(self)):
            index = (i * self.world + self.rank) % len(self.names)
            yield index, self.names[index]
