"""A structure-from-motion library that finds what it is told to, and can be stopped anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_nerf.process.options import Options
from lightning_nerf.process.sfm import Count, Lens, Model, Pair, Pose


class FakeSfm:
    """Keeps what it has done in a file, as a database would; ``calls`` is what it did, not what it was asked for.

    Args:
        models: the names of the pictures of each model that it finds; None: one with all.
        stop: raises KeyboardInterrupt after so many units of work (a picture, a pair, a mapping).
    """

    version = "fake"

    def __init__(self, models: list[list[str]] | None = None, stop: int | None = None) -> None:
        self.models, self.stop = models, stop
        self.calls: list[str] = []

    def open(self, options: Options, images: Path, folder: Path) -> FakeSfm:
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.options, self.images = folder / "database.json", options, images
        return self

    def reset(self) -> None:
        self.calls.append("reset")
        self._write({"features": [], "pairs": []})

    def add_pictures(self, groups: Sequence[Sequence[str]]) -> None:
        self.groups = groups

    def extract(self, names: Sequence[str], count: Count) -> None:
        self._work("features", names, count)

    def match(self, pairs: Sequence[Pair], count: Count) -> None:
        self._work("pairs", [" ".join(pair) for pair in pairs], count)

    def map(self, mapper: str, folder: Path, count: Count) -> list[Path]:
        self._one(mapper)
        models = [self._read()["features"]] if self.models is None else self.models
        for i, names in enumerate(models):
            (folder / str(i)).mkdir(parents=True, exist_ok=True)
            (folder / str(i) / "model.json").write_text(json.dumps(names))
        return [folder / str(i) for i in range(len(models))]

    def read(self, folder: Path) -> Model:
        names = json.loads((folder / "model.json").read_text())
        lens = Lens("SIMPLE_RADIAL", 8, 6, (7.0, 4.0, 3.0, 0.1))
        return Model({1: lens}, {name: Pose(1, np.eye(3, 4)) for name in names}, 10 * len(names), 0.5)

    def write_points(self, folder: Path, path: Path) -> None:
        path.write_text("ply")

    def n_features(self) -> dict[str, int]:
        names = [name for name in self._read()["features"] if not name.startswith("odd")]  # which it cannot read
        return {name: 10 if name.startswith("plain") else 1000 for name in names}

    def n_partners(self) -> dict[str, int]:
        return {name: 0 if name.startswith("alone") else 2 for name in self._read()["features"]}

    def _work(self, kind: str, wanted: Sequence[str], count: Count) -> None:
        for i, item in enumerate(wanted):
            done = self._read()
            if item not in done[kind]:
                self._one(item)
                self._write({**done, kind: [*done[kind], item]})
            count(i + 1)

    def _one(self, what: str) -> None:
        if self.stop is not None and len(self.calls) - self.calls.count("reset") == self.stop:
            raise KeyboardInterrupt
        self.calls.append(what)

    def _read(self) -> dict[str, list[str]]:
        return json.loads(self.file.read_text())

    def _write(self, content: dict[str, list[str]]) -> None:
        self.file.write_text(json.dumps(content))


def write_photos(folder: Path, *names: str, size: tuple[int, int] = (8, 6)) -> Path:
    """Small pictures of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder
