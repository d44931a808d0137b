"""A scene that needs no download: rendered once, kept in a cache folder in the NeRF-Synthetic format."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_nerf.cameras.poses import spiral_poses
from lightning_nerf.checks import check_instance, check_integer
from lightning_nerf.data.analytic import AnalyticScene
from lightning_nerf.data.scene import Scene
from lightning_nerf.data.shapes import Triple
from lightning_nerf.data.sources.blender import BlenderSource
from lightning_nerf.files import named_errors
from lightning_nerf.recorded import Plain
from lightning_nerf.scene_box import SceneBox

VERSION = 1  # of the pictures: whatever changes them must change it
CAMERA_ANGLE_X, RADIUS = 0.6911112070083618, 4.0  # those of NeRF-Synthetic's Lego
BOX = ((-1.12, -1.12, -0.75), (1.12, 1.12, 1.01))  # the tightest round numbers
ELEVATIONS = (-10.0, 70.0)
TURNS = {"train": 0.0, "val": 1 / 3, "test": 2 / 3}  # of the cameras' spirals: no split repeats a camera of another


class View(NamedTuple):
    """One picture to render."""

    c2w: np.ndarray  # [3, 4]
    time: float | None = None  # None: the scene stands still


class SyntheticSource(BlenderSource):
    """Textured, shiny solids, thin rods and hoops and the empty space between them, ray-traced (``analytic.py``).

    Pictures are RGBA, 9 rays a pixel, alpha being the covered share; objects take more than a quarter of every view. The
    first use renders them (65 views of 200 x 200 pixels in about 12 s on one core) into
    ``<cache_dir>/synthetic-…``, named after the arguments that decide the pictures; several processes may do so at once.
    The same arguments give the same pictures.

    Args:
        resolution: pixels along each side, 1 to 4096.
        n_train, n_test, n_val: views per split, each on a golden spiral between 10 degrees below and 70 above the horizon.
        seed: which solid stands where, and the colors.
        cache_dir: default ``$XDG_CACHE_HOME/lightning-nerf``, or ``~/.cache/lightning-nerf``.
    """

    kind: ClassVar[str] = "synthetic"
    version: ClassVar[int] = VERSION
    aabb: ClassVar[tuple[Triple, Triple]] = BOX
    camera_angle_x: ClassVar[float] = CAMERA_ANGLE_X

    def __init__(
        self,
        resolution: int = 200,
        n_train: int = 50,
        n_test: int = 10,
        n_val: int = 5,
        seed: int = 0,
        cache_dir: str | Path | None = None,
    ) -> None:
        for name, value, least in [("n_train", n_train, 1), ("n_test", n_test, 1), ("n_val", n_val, 0)]:
            check_integer(name, value, least, 10_000)
        check_integer("resolution", resolution, 1, 4096)
        check_integer("seed", seed, 0)
        if cache_dir is not None:
            check_instance("cache_dir", cache_dir, str, os.PathLike)
        folder = f"{self.kind}-{self.version}-seed{seed}-{resolution}px-{n_train}-{n_val}-{n_test}"
        super().__init__((_default_cache() if cache_dir is None else Path(os.path.expanduser(cache_dir))) / folder)
        self.resolution = resolution
        self.counts = {"train": n_train, "val": n_val, "test": n_test}
        self.seed = seed

    @classmethod
    def arguments_of_file(cls, arguments: Plain) -> Plain:
        """Keep a recorded ``cache_dir`` only where the scene already lies there: then nothing is written to it."""
        return arguments if cls.is_cached(arguments) else super().arguments_of_file(arguments)

    @property
    def name(self) -> str:
        """The kind of scene, whatever the cache folder is called."""
        return self.kind

    def prepare(self) -> None:
        """Render the pictures, unless the cache has them."""
        if self.root.is_dir():
            return
        rank_zero_info(f"Rendering {sum(self.counts.values())} views of the {self.name} scene, once, into {self.root}")
        with named_errors(self.root):
            self.root.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.root.parent, prefix=".rendering-") as temporary:
                finished = Path(temporary, "scene")
                self._render(finished)
                try:
                    finished.rename(self.root)
                except OSError:
                    if not self.root.is_dir():  # else another process was first, with the same pictures
                        raise

    def box(self) -> SceneBox:
        """The tightest round numbers."""
        return SceneBox(torch.tensor(self.aabb, dtype=torch.float32))

    def read(self, split: str) -> Scene:
        """The views of a split, rendered first where the cache lacks them."""
        self.prepare()
        return super().read(split)

    @classmethod
    def is_cached(cls, arguments: Plain) -> bool:
        """Whether the pictures of these arguments, some of a file's, lie in their ``cache_dir``."""
        names = inspect.signature(cls.__init__).parameters
        try:
            return cls(**{name: value for name, value in arguments.items() if name in names}).root.is_dir()
        except (TypeError, ValueError, OSError):
            return False

    def views(self, split: str) -> Iterator[View]:
        """Cameras and times of a split."""
        for c2w in spiral_poses(self.counts[split], RADIUS, ELEVATIONS, TURNS[split]).numpy():
            yield View(c2w)

    def traced(self, time: float | None) -> AnalyticScene:
        """The scene at a time, for the ray tracer."""
        return AnalyticScene(self.seed, time)

    def _render(self, folder: Path) -> None:
        for split, n_views in self.counts.items():
            if not n_views:
                continue
            (folder / split).mkdir(parents=True)
            frames = []
            for i, view in enumerate(self.views(split)):
                picture = self.traced(view.time).render(view.c2w, self.camera_angle_x, self.resolution)
                iio.imwrite(folder / split / f"r_{i}.png", picture, plugin="pillow")
                frame = {
                    "file_path": f"./{split}/r_{i}",
                    "transform_matrix": [*view.c2w.tolist(), [0.0, 0.0, 0.0, 1.0]],
                }
                frames.append(frame if view.time is None else {**frame, "time": view.time})
            content = {"camera_angle_x": self.camera_angle_x, "frames": frames}
            (folder / f"transforms_{split}.json").write_text(json.dumps(content, indent=1))


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning-nerf"
