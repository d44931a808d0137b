"""The base of all data modules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_nerf.arguments import Recorded, build
from lightning_nerf.checkpoint_io import read_checkpoint
from lightning_nerf.checks import BadArgument, check_number
from lightning_nerf.data.views import Views, draw_rays
from lightning_nerf.ops.draw_rays import draw_background
from lightning_nerf.types import RayBatch, SceneBox

if TYPE_CHECKING:
    from typing_extensions import Self

SPLITS = ("train", "val", "test")
BACKGROUNDS = {"white": 1.0, "black": 0.0}  # and "random"
_SPLITS_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}


class NeRFDataModule(Recorded, L.LightningDataModule, ABC):
    """Posed images in splits "train", "val" and "test", and training rays drawn from them on the device.

    A training batch is a step number and an evaluation batch a view's ``(index, name)``: rays and pixels are looked up on
    the device, with :meth:`draw` and :meth:`lend`, from images that stay there. A subclass implements :meth:`load`.

    What the constructor was given is in the checkpoints of :class:`~lightning_nerf.modules.NeRFModule`, as the module's own
    arguments are; a subclass does nothing for it.

    Args:
        aabb: minimum and maximum corner of the box that holds the scene, ``[[x, y, z], [x, y, z]]``.
        near, far: bounds of every ray, in world units; the estimator also clips rays to the scene box.
        background: what training rays are composited on, prediction and truth (where it has alpha) alike: "white", "black",
            or "random", a colour of its own for each ray and step. :class:`~lightning_nerf.modules.NeRFModule` begins with
            random ones in any case.
        eval_background: the same for evaluation, "white" or "black". None: as ``background``, and white for "random".
    """

    def __init__(
        self,
        aabb: Sequence[Sequence[float]],
        near: float,
        far: float,
        background: str = "white",
        eval_background: str | None = None,
    ) -> None:
        super().__init__()
        self.scene_box = SceneBox(_checked_aabb(aabb))
        for name, value in [("near", near), ("far", far)]:
            check_number(name, value, "[0, inf)")
        if not near < far:
            raise BadArgument(f"near, far: expected 0 <= near < far, got {near}, {far}")
        self.near, self.far = float(near), float(far)
        if background not in (*BACKGROUNDS, "random"):
            raise BadArgument(f'background: expected "white", "black" or "random", got {background!r}')
        if eval_background is not None and eval_background not in tuple(BACKGROUNDS):
            raise BadArgument(f'eval_background: expected "white", "black" or None, got {eval_background!r}')
        self.background = background
        self.eval_background = eval_background or (background if background in BACKGROUNDS else "white")
        self._loaded: dict[str, tuple[Views, list[str]]] = {}
        self._lent: dict[str, Views] = {}

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """The data module that a checkpoint was trained on, of the class that it names: this one or a subclass.

        Args:
            checkpoint_path: a file, local or remote, or an open one.
            map_location, weights_only: as of :func:`torch.load`.
            kwargs: arguments of the constructor in place of the recorded ones, such as where the pictures are now.

        Raises:
            ValueError: the checkpoint names no data module or one of another class, or an argument has no name and is not
                given here.
        """
        spec = read_checkpoint(checkpoint_path, map_location, weights_only).get(cls.CHECKPOINT_HYPER_PARAMS_KEY)
        if spec is None:
            raise BadArgument(f"checkpoint_path: {checkpoint_path} names no data module; build {cls.__name__} yourself")
        return build(spec, cls, **kwargs)

    @property
    def scene_name(self) -> str:
        """What reports call the scene."""
        return type(self).__name__

    @abstractmethod
    def load(self, split: str) -> tuple[Views, list[str]]:
        """Read split "train", "val" or "test": its views, on the CPU, and their names. A split may have no views."""

    def setup(self, stage: str | None = None) -> None:
        """Load the splits of a stage; None: all."""
        for split in _SPLITS_OF_STAGE[stage] if stage else SPLITS:
            self.views(split)

    def views(self, split: str) -> Views:
        """The views of a split, on the CPU; loaded on first use."""
        return self._load_once(split)[0]

    def names(self, split: str) -> list[str]:
        """One name per view of a split."""
        return self._load_once(split)[1]

    def lend(self, device: torch.device | str, split: str = "train") -> Views:
        """The views of a split on ``device``: copied there on first use and kept, for one device at a time."""
        lent = self._lent.get(split)
        if lent is None or lent.images.device != _with_index(device):
            lent = self._lent[split] = self.views(split).to(device)
        return lent

    def draw(self, key: Tensor, capacity: int, n_rays: Tensor | None = None) -> RayBatch:
        """Training rays on the key's device, see :func:`lightning_nerf.data.views.draw_rays`.

        The first call on a device copies the images there. Call :meth:`lend` before capturing a CUDA graph.
        """
        return draw_rays(self.lend(key.device), key, capacity, n_rays, near=self.near, far=self.far)

    def draw_background(self, key: Tensor, n: int, random_steps: int = 0) -> Tensor:
        """The training background of n rays, [n, 3], a function of ``key`` (stream ``STREAM_BACKGROUND``).

        Random in the key's first ``random_steps`` steps. To be used for the truth and for the prediction alike.
        """
        grey = BACKGROUNDS.get(self.background)
        colour = None if grey is None else (grey, grey, grey)
        return draw_background(key, n, colour=colour, random_steps=random_steps)

    def train_dataloader(self) -> StepNumbers:
        """Step numbers, without end."""
        loop = self.trainer.fit_loop if self.trainer else None
        if loop and loop.min_steps is not None and loop.min_epochs == 1:
            loop.min_epochs = 0  # Lightning's own addition to min_steps: nothing would ever stop the fit
        return StepNumbers(self._steps_done)

    def val_dataloader(self) -> ViewIndices:
        """The views to validate on; where there are none, Lightning says so once and does not validate."""
        return self._view_indices("val")

    def test_dataloader(self) -> ViewIndices:
        """The views to test on."""
        return self._view_indices("test")

    def predict_dataloader(self) -> ViewIndices:
        """The test views."""
        return self._view_indices("test")

    def _load_once(self, split: str) -> tuple[Views, list[str]]:
        if split not in SPLITS:
            raise BadArgument(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        if split not in self._loaded:
            self._loaded[split] = self.load(split)
        return self._loaded[split]

    def _steps_done(self) -> int:
        return self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0

    def _view_indices(self, split: str) -> ViewIndices:
        names = self.names(split)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(names) % world:
            rank_zero_warn(
                f"{len(names)} {split} views over {world} processes: some are evaluated twice, so that all ranks take part "
                "in every step; means over views are then not exact. Evaluate on one device for figures to report."
            )
        return ViewIndices(names, rank, world)


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


def _checked_aabb(aabb: Sequence[Sequence[float]]) -> Tensor:
    try:
        box = torch.tensor([[float(x) for x in corner] for corner in aabb])
    except (TypeError, ValueError, OverflowError) as error:
        raise BadArgument(f"aabb: expected two corners of three numbers, got {aabb!r}") from error
    if box.shape != (2, 3) or not bool(torch.isfinite(box).all()) or not bool((box[0] < box[1]).all()):
        raise BadArgument(f"aabb: expected a minimum corner and a maximum corner above it, got {aabb!r}")
    return box


def _with_index(device: torch.device | str) -> torch.device:
    """ "cuda" as the current device's "cuda:i", which is what tensors carry."""
    device = torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device
