"""The cameras of ``lightning-nerf render``, and when each of them looks."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_nerf.callbacks.framing import object_box
from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.cameras.paths import orbit, resized, spiral, sway
from lightning_nerf.checks import BadArgument
from lightning_nerf.data.base import SPLITS
from lightning_nerf.data.camera_files import read_cameras, time_hint
from lightning_nerf.modules.times import known_time_range
from lightning_nerf.render.scene import TrainedScene
from lightning_nerf.render.times import TimeRange, Times, parse_times, warn_outside

FRAMES = 120  # of a path that has no number of its own
PATHS = ("test", "val", "train", "orbit", "spiral")


def is_view(path: str) -> bool:
    """Whether ``--path`` names one view of a split, as in ``test:3``."""
    split, colon, view = path.partition(":")
    return split in SPLITS and bool(colon and view)


def choose_cameras(options: argparse.Namespace, scene: TrainedScene) -> tuple[Cameras, list[str]]:
    """The cameras of ``--path`` in the size asked for, at ``--times``, and a name for each."""
    times = None if options.times is None else parse_times(options.times)
    if times is not None and "times" not in scene.module.field.wants:
        raise BadArgument(
            f"--times: expected a model of a dynamic scene; {type(scene.module.field).__name__} does not want times: it "
            "shows the same at all of them"
        )
    cameras, names = _cameras(options, scene, times)
    cameras, names = _frames(options, cameras, names, times)
    return _at_times(options, scene, cameras, times), names


def _cameras(options: argparse.Namespace, scene: TrainedScene, times: Times | None) -> tuple[Cameras, list[str] | None]:
    """All cameras of ``--path``, with the times that they have by themselves, and their names, if they have any."""
    data, path = scene.data, options.path
    if path in SPLITS or is_view(path):
        split, _, view = path.partition(":")
        views = data.scene(split)
        cameras, names = scene.module.view_cameras(split, data), views.names
        if view:
            i = _index(path, split, view, names)
            cameras, names = cameras.chosen([i]), [names[i]]
        return _in_size(options, cameras), names
    if path not in PATHS:
        reads_times = times is None and "times" in scene.module.field.wants
        cameras = read_cameras(Path(path), data.scene("train").cameras, reads_times, data.to_world())
        return _in_size(options, cameras), None
    train, box = _in_size(options, data.scene("train").cameras), data.scene_box.aabb
    framed = object_box(scene.module.estimator, box)
    n = options.n_frames or (times and times.n_frames) or FRAMES
    if data.scene_box.contraction == "ndc":  # nothing is seen from behind
        return sway(train, box, n), None
    if path == "orbit":
        return orbit(train, box, n, options.elevation, framed), None
    return spiral(train, box, n, framed=framed), None


def _index(path: str, split: str, view: str, names: list[str]) -> int:
    """The number of a view that is given by its name or its number."""
    if view in names:
        return names.index(view)
    if view.isdecimal() and int(view) < len(names):
        return int(view)
    last = len(names) - 1
    raise BadArgument(
        f"--path: the data has no {split} views"
        if last < 0
        else f"--path: expected {split}:0 to {split}:{last}, or a view's name, as in {split}:{names[0]}, got {path!r}"
    )


def _frames(
    options: argparse.Namespace, cameras: Cameras, names: list[str] | None, times: Times | None
) -> tuple[Cameras, list[str]]:
    """As many of the cameras as are asked for; a single one as often as it looks, where the time passes."""
    found = cameras.n_views
    if found == 0:
        raise BadArgument(f"--path: the data has no {options.path} views")
    if found == 1 and times is not None and times.moves:
        n = options.n_frames or times.n_frames or FRAMES
        return cameras.chosen([0] * n), [f"{i:04d}" for i in range(n)]
    names = [f"{i:04d}" for i in range(found)] if names is None else names
    n = options.n_frames or found
    if n > found:
        raise BadArgument(f"--n_frames: expected at most {found}, the number of cameras of --path {options.path}, got {n}")
    chosen = [i * found // n for i in range(n)]
    return cameras.chosen(chosen), [names[i] for i in chosen]


def _at_times(options: argparse.Namespace, scene: TrainedScene, cameras: Cameras, times: Times | None) -> Cameras:
    """The cameras with the times that they are asked for, or else with their own."""
    if "times" not in scene.module.field.wants:
        return cameras
    if times is not None:
        cameras = cameras._replace(times=times.of_frames(cameras.n_views).to(cameras.c2w.device))
    elif cameras.times is None:
        trained = _trained(scene)
        known = "" if trained is None else f"; those of the training views are from {trained[0]:g} to {trained[1]:g}"
        hint = "" if options.path in PATHS or is_view(options.path) else time_hint(Path(options.path))
        raise BadArgument(
            f"--times: expected a time, as in --times 0.5: {type(scene.module.field).__name__} wants times, and the "
            f"cameras of --path {options.path} have none{hint}{known}"
        )
    if cameras.times is not None:
        warn_outside(cameras.times, _trained(scene), f"--path {options.path}")
    return cameras


def _trained(scene: TrainedScene) -> TimeRange | None:
    """The range of times that the field learned from; None where neither it nor the data here know."""
    known = known_time_range(scene.module)
    if known is not None:
        return known
    try:
        return scene.data.time_range()
    except FileNotFoundError:  # held-out views can be rendered without them
        return None


def _in_size(options: argparse.Namespace, cameras: Cameras) -> Cameras:
    """Cameras with pictures of the size asked for."""
    if cameras.n_views == 0 or (options.resolution is None and options.scale is None):
        return cameras
    height, width = cameras.shape(0)
    if options.scale is not None:
        width, height = round(width * options.scale), round(height * options.scale)
        if min(width, height) < 1:
            raise BadArgument(f"--scale: {options.scale} leaves {width} x {height} pixels")
    return resized(cameras, *(options.resolution or (width, height)))
