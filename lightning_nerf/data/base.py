"""The base of all data modules."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_nerf.arguments import Recorded, build
from lightning_nerf.cameras.cameras import check_bounds
from lightning_nerf.checkpoint_io import read_checkpoint
from lightning_nerf.checks import BadArgument, check_instance, check_number
from lightning_nerf.data.depths import TrainingDepths, ray_depths
from lightning_nerf.data.host_rays import HostRays, host_rays
from lightning_nerf.data.loaders import StepNumbers, ViewIndices
from lightning_nerf.data.picture_files import pictures_in
from lightning_nerf.data.picture_memory import scene_on_device, with_index
from lightning_nerf.data.scene import Scene, checked_scene
from lightning_nerf.data.seen_pixels import without_unseen_pixels
from lightning_nerf.data.source import Source
from lightning_nerf.ops.draw_rays import draw_background, draw_rays
from lightning_nerf.scene_box import SceneBox, check_box, check_contraction, check_corners, check_front
from lightning_nerf.types import RayBatch

if TYPE_CHECKING:
    from typing_extensions import Self

_NEAR, _FAR = 0.05, 1000.0  # for a box of unit length 1
SPLITS = ("train", "val", "test")
BACKGROUNDS = {"white": 1.0, "black": 0.0}  # and "random"
_SPLITS_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}


class NeRFDataModule(Recorded, L.LightningDataModule):
    """Posed pictures in splits "train", "val" and "test", and training rays drawn from them on the device.

    A training batch is a step number and an evaluation batch a view's ``(index, name)``: rays and pixels are looked up on
    the device, with :meth:`draw` and :meth:`scene_on`, from pictures that stay there.

    What the constructor was given is in the checkpoints of :class:`~lightning_nerf.modules.NeRFModule`, as the module's own
    arguments are; a subclass does nothing for it.

    Args:
        source: reads the pictures and their cameras; by ``class_path`` in a recipe.
        aabb: minimum and maximum corner of the box that holds the scene, ``[[x, y, z], [x, y, z]]``; None: the source's.
        near, far: bounds of the rays of cameras that have none of their own, in world units; the estimator also clips rays
            to the scene box. None: 0.05 and 1000 for the box [-1.5, 1.5]^3, and in proportion for another.
        background: what training rays are composited on, prediction and truth (where it has alpha) alike: "white", "black",
            or "random", a color of its own for each ray and step. :class:`~lightning_nerf.modules.NeRFModule` begins with
            random ones in any case.
        eval_background: the same for evaluation, "white" or "black". None: as ``background``, and white for "random".
        contraction: how the field sees space outside of the box, "none", "l2" or "linf", or "ndc" for cameras that look
            one way, see :class:`~lightning_nerf.SceneBox`.
        device_budget: GiB of a CUDA device's memory for pictures; those that do not fit stay in the host's, and the device
            reads them from there. None: three quarters of what is free. 0: all stay.
        picture_cache: a folder. Pictures are decoded once, into a file there, and mapped; later runs find the file. None:
            only those that the host's memory does not hold, in ``~/.cache/lightning-nerf/pictures``.

    >>> from lightning_nerf import NeRFDataModule
    >>> from lightning_nerf.data.sources import SyntheticSource
    >>> data = NeRFDataModule(SyntheticSource(resolution=16, n_train=2, n_test=1, n_val=0), background="random")
    >>> data.eval_background
    'white'
    """

    def __init__(
        self,
        source: Source,
        aabb: Sequence[Sequence[float]] | None = None,
        near: float | None = None,
        far: float | None = None,
        background: str = "white",
        eval_background: str | None = None,
        contraction: str = "none",
        device_budget: float | None = None,
        picture_cache: str | Path | None = None,
    ) -> None:
        super().__init__()
        check_instance("source", source, Source)
        check_contraction("contraction", contraction)
        self._box = None if aabb is None else SceneBox(_checked_aabb(aabb), contraction)
        if self._box is not None:
            check_front("aabb", self._box)
        self.contraction = contraction
        for name, value in [("near", near), ("far", far), ("device_budget", device_budget)]:
            if value is not None:
                check_number(name, value, "[0, inf)")
        if near is not None and far is not None and not near < far:
            raise BadArgument(f"near, far: expected 0 <= near < far, got {near}, {far}")
        self._near, self._far = near, far
        if background not in (*BACKGROUNDS, "random"):
            raise BadArgument(f'background: expected "white", "black" or "random", got {background!r}')
        if eval_background is not None and eval_background not in tuple(BACKGROUNDS):
            raise BadArgument(f'eval_background: expected "white", "black" or None, got {eval_background!r}')
        self.source = source
        self.background = background
        self.eval_background = eval_background or (background if background in BACKGROUNDS else "white")
        check_instance("picture_cache", picture_cache, str, os.PathLike, type(None))
        self.device_budget = device_budget
        self.picture_cache = None if picture_cache is None else Path(os.path.expanduser(picture_cache))
        self._scenes: dict[str, Scene] = {}
        self._on_device: dict[str, Scene] = {}
        self.depths = TrainingDepths()

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        weights_only: bool | None = None,
        allow: Sequence[str] = (),
        **kwargs: Any,
    ) -> Self:
        """The data module that a checkpoint was trained on, of the class that it names: this one or a subclass.

        Args:
            checkpoint_path: a file, local or remote, or an open one.
            map_location, weights_only: as of :func:`torch.load`.
            allow: packages whose classes the checkpoint may have imported.
            kwargs: arguments of the constructor in place of the recorded ones, such as where the pictures are now.

        Raises:
            ValueError: the checkpoint names no data module or one of another class, or an argument has no name and is not
                given here.
        """
        content = read_checkpoint(checkpoint_path, map_location, weights_only)
        spec = content.get(cls.CHECKPOINT_HYPER_PARAMS_KEY)
        if spec is None:
            raise BadArgument(f"checkpoint_path: {checkpoint_path} names no data module; build {cls.__name__} yourself")
        data = build(spec, cls, allow=allow, **kwargs)
        data.take_state(content)
        return data

    def take_state(self, checkpoint: Mapping[str, Any]) -> None:
        """Load what a checkpoint's content holds of this data module, if anything."""
        if isinstance(state := checkpoint.get(type(self).__qualname__), dict):  # where Lightning keeps it
            self.load_state_dict(state)

    def to_world(self) -> Tensor | None:
        """[4, 4] float64, from the scene's units to those of its files; None: they are the same."""
        return None

    @property
    def scene_name(self) -> str:
        """The scene's name in reports."""
        return self.source.name

    @property
    def scene_box(self) -> SceneBox:
        """The box that holds the scene. Where no ``aabb`` was given, the training views are read for it."""
        if self._box is None:
            self.source.prepare()
            box = self.source.box()
            if box is not None:
                check_box(f"{type(self.source).__name__}.box()", box)
            elif (box := self.scene("train").box) is None:
                raise BadArgument(f"aabb: {type(self.source).__name__} knows no box; give two corners that hold the scene")
            self._box = box._replace(contraction=self.contraction) if self.contraction != "none" else box
            check_front("aabb", self._box)
        return self._box

    @property
    def near(self) -> float:
        """Where rays begin whose camera does not say."""
        return _NEAR * self.scene_box.unit_length() if self._near is None else float(self._near)

    @property
    def far(self) -> float:
        """Where rays end whose camera does not say."""
        return _FAR * self.scene_box.unit_length() if self._far is None else float(self._far)

    def prepare_data(self) -> None:
        """Let the source prepare what it reads."""
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read the splits of a stage; None: all. Before a fit, check also what describes the test views."""
        if stage and stage not in _SPLITS_OF_STAGE:
            raise BadArgument(f"stage: expected one of {', '.join(_SPLITS_OF_STAGE)}, got {stage!r}")
        if stage == "fit":
            self.source.prepare()
            self.source.check()
        for split in _SPLITS_OF_STAGE[stage] if stage else SPLITS:
            self.scene(split)

    def scene(self, split: str) -> Scene:
        """The views of a split, on the CPU, with bounds; read on first use."""
        if split not in SPLITS:
            raise BadArgument(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        if split not in self._scenes:
            self.source.prepare()
            with pictures_in(self.picture_cache):
                scene = self.source.read(split)
            scene = checked_scene(f"{type(self.source).__name__}.read({split!r})", scene)
            scene = without_unseen_pixels(scene)
            self._scenes[split] = scene  # where the box comes from, if it is not given
            if scene.cameras.bounds is None:
                near, far = self.near, self.far
                check_bounds("near, far", torch.tensor([[near, far]], dtype=torch.float32))
                self._scenes[split] = scene._replace(cameras=scene.cameras.bounded(near, far))
        return self._scenes[split]

    def scene_on(self, device: torch.device | str, split: str = "train") -> Scene:
        """The views of a split on ``device``: copied there on first use and kept, for one device at a time.

        Pixels that do not fit there stay on the host, see :func:`~lightning_nerf.data.picture_memory.scene_on_device`.
        """
        there, device = self._on_device.get(split), with_index(device)
        if there is None or there.cameras.c2w.device != device:
            self._on_device.pop(split, None)  # before the other device's copy is made
            there = self._on_device[split] = scene_on_device(self.scene(split), device, self.device_budget, split)
        return there

    def draw(self, key: Tensor, capacity: int, n_rays: Tensor | None = None, open_views: Tensor | None = None) -> RayBatch:
        """Training rays on the key's device, see :func:`lightning_nerf.ops.draw_rays.draw_rays`.

        The first call on a device copies the pictures there. Call :meth:`scene_on` before capturing a CUDA graph.
        """
        if not self.draws_on_host(key.device):
            return self._drawn(self.scene_on(key.device), key, capacity, n_rays, open_views)
        n_rays, open_views = (None if value is None else value.cpu() for value in (n_rays, open_views))
        drawn = self._drawn(self.scene("train"), key.cpu(), capacity, n_rays, open_views)
        return drawn.map(lambda tensor: tensor.to(key.device))

    def _drawn(
        self, scene: Scene, key: Tensor, capacity: int, n_rays: Tensor | None = None, open_views: Tensor | None = None
    ) -> RayBatch:
        pixels = scene.pixels()
        batch = draw_rays(pixels, key, capacity, n_rays, open_views)
        depths = self.depths.on(key.device, self.scene("train"), self.device_budget)
        if depths is None:
            return batch
        return batch._replace(depth=ray_depths(pixels, depths, batch.rays, key, capacity, open_views))

    def draws_on_host(self, device: torch.device) -> bool:
        """Whether training rays for ``device`` are drawn on the host, since no memory holds the pictures."""
        return self.scene_on(device).images.colors.device != with_index(device)

    def time_range(self) -> tuple[float, float] | None:
        """The first and the last time of the training views; None: they have no times."""
        times = self.scene("train").cameras.times
        return None if times is None or len(times) == 0 else (float(times.min()), float(times.max()))

    def draw_background(self, key: Tensor, n: int, random_steps: int = 0) -> Tensor:
        """The training background of n rays, [n, 3], a function of ``key`` (stream ``STREAM_BACKGROUND``).

        Random in the key's first ``random_steps`` steps. To be used for the truth and for the prediction alike.
        """
        grey = BACKGROUNDS.get(self.background)
        color = None if grey is None else (grey, grey, grey)
        return draw_background(key, n, color=color, random_steps=random_steps)

    def train_dataloader(self) -> StepNumbers | HostRays:
        """Step numbers, without end; the steps' rays where these are drawn on the host."""
        loop = self.trainer.fit_loop if self.trainer else None
        if loop and loop.min_steps is not None and loop.min_epochs == 1:
            loop.min_epochs = 0  # Lightning's own addition to min_steps: nothing would ever stop the fit
        if self.trainer and self.draws_on_host(self.trainer.strategy.root_device):
            return host_rays(self.trainer, partial(self._drawn, self.scene("train")), self._steps_done)
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

    def _steps_done(self) -> int:
        return self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0

    def _view_indices(self, split: str) -> ViewIndices:
        names = self.scene(split).names
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(names) % world:
            rank_zero_warn(
                f"{len(names)} {split} views over {world} processes: some are evaluated twice, so that all ranks take part "
                "in every step; means over views are then not exact. Evaluate on one device for figures to report."
            )
        return ViewIndices(names, rank, world)


def _checked_aabb(aabb: Sequence[Sequence[float]]) -> Tensor:
    try:
        box = torch.tensor([[float(x) for x in corner] for corner in aabb], dtype=torch.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadArgument(f"aabb: expected two corners of three numbers, got {aabb!r}") from error
    if box.shape != (2, 3) or not bool(box.isfinite().all()) or not bool((box[0] < box[1]).all()):
        raise BadArgument(f"aabb: expected a minimum corner and a maximum corner above it, got {aabb!r}")
    check_corners("aabb", box)
    return box
