"""The stages from photos to poses, each skipped where an earlier run has done it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from lightning_nerf.checks import BadArgument
from lightning_nerf.process import pictures, video
from lightning_nerf.process.options import Options
from lightning_nerf.process.pairs import choose_matcher, choose_pairs
from lightning_nerf.process.progress import Progress
from lightning_nerf.process.report import Report, make_report, write_report
from lightning_nerf.process.sfm import Model, StructureFromMotion
from lightning_nerf.process.stages import Stages
from lightning_nerf.process.transforms import POINTS, write_transforms

WORK = "colmap"  # the folder in OUT of what a second run goes on with
_OURS = ("images", "sparse", "transforms.json")


def process(options: Options, open_sfm: Callable[[Options, Path, Path], StructureFromMotion], progress: Progress) -> Report:
    """Run all stages that are not done yet, write the result into ``options.out``, and report on it.

    Args:
        options: of the command.
        open_sfm: makes the library of the options, the folder of the pictures and that of its files.
        progress: what is going on.

    Raises:
        BadArgument: where there is nothing to be done, or what lies in ``out`` is not of this command.
    """
    check_out(options)
    out = options.out
    stages = Stages(out / WORK / "stages.json")
    names, unreadable = _pictures(options, stages, progress)
    sfm = open_sfm(options, out / "images", out / WORK)

    begun = stages.begin("features", [options.single_camera, options.max_size, sfm.version])
    if begun.is_new:
        sfm.reset()
    if not begun.is_done:
        progress.begin("features", len(names), "pictures")
        shares = True if _is_video(options) and options.single_camera is None else options.single_camera
        sfm.add_pictures(pictures.group_by_camera(out / "images", names, shares))
        sfm.extract(names, progress.count)
        stages.finish("features")

    matcher = choose_matcher(options.matcher, len(names), _is_video(options))
    if not stages.begin("matches", matcher).is_done:
        pairs = choose_pairs(matcher, names)
        progress.begin(f"matches ({matcher})", len(pairs), "pairs")
        sfm.match(pairs, progress.count)
        stages.finish("matches")

    models = _models(options, stages, sfm, len(names), progress)
    if models:
        write_transforms(out / "transforms.json", models[0], names)
        sfm.write_points(out / "sparse" / "0", out / POINTS)
    used = options.mapper, options.camera_model
    report = make_report(models, names, unreadable, sfm.n_features(), sfm.n_partners(), matcher, *used)
    settings = {"matcher": matcher, "mapper": used[0], "camera_model": used[1], "pycolmap": sfm.version}
    write_report(out / "report.json", report, settings)
    return report


def check_out(options: Options) -> None:
    """Refuse to write over what another program has made, or over the photos themselves."""
    out = options.out
    if out.exists() and not out.is_dir():
        raise BadArgument(f"OUT: expected a folder, got the file {out}")
    if options.source.resolve() in (out.resolve(), (out / "images").resolve()):
        raise BadArgument(
            f"OUT: expected another folder than that of the photos, got {out} (photos are linked, not copied)"
        )
    if not (out / WORK / "stages.json").is_file():
        foreign = [name for name in _OURS if (out / name).exists()]
        if foreign:
            raise BadArgument(f"OUT: expected a new folder or one of this command, got {out}, where {foreign[0]} lies")


def _is_video(options: Options) -> bool:
    return options.source.suffix.lower() in video.ENDINGS and not options.source.is_dir()


def _pictures(options: Options, stages: Stages, progress: Progress) -> tuple[list[str], list[str]]:
    """The names of the pictures in OUT/images, and those of photos that cannot be read."""
    is_video = _is_video(options)
    photos = [options.source] if is_video else pictures.list_photos(options.source)
    depends: list[object] = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in photos]
    images = options.out / "images"
    begun = stages.begin("pictures", [*depends, options.fps, options.n_frames] if is_video else depends)
    if begun.is_done:
        names, unreadable = _two_lists(stages.result("pictures"))
        if all((images / name).is_file() for name in names):
            return names, unreadable
    shutil.rmtree(images, ignore_errors=True)  # of an earlier run, as check_out has seen
    if is_video:
        opened = video.open_video(options.source)
        progress.begin("frames", round(opened.fps * opened.seconds), "read")
        rate = video.wanted_rate(opened, options.fps, options.n_frames)
        names, unreadable = video.take_frames(opened, rate, images, progress.count), []
    else:
        progress.begin("photos", len(photos), "read")
        names, unreadable = pictures.enter_photos(photos, images, progress.count)
    if len(names) < 3:
        raise BadArgument(f"{options.source}: expected at least 3 pictures that can be read, got {len(names)}")
    stages.finish("pictures", [names, unreadable])
    return names, unreadable


def _models(options: Options, stages: Stages, sfm: StructureFromMotion, n: int, progress: Progress) -> list[Model]:
    """All models, the largest first, which lies in OUT/sparse/0."""
    folder = options.out / WORK / "models"
    sparse = options.out / "sparse"
    if stages.begin("model", [options.mapper, options.camera_model]).is_done:
        paths = [folder / str(name) for name in _list(stages.result("model"))]
        if all(path.is_dir() for path in paths):
            return [sfm.read(path) for path in paths]
    shutil.rmtree(sparse, ignore_errors=True)
    (options.out / "transforms.json").unlink(missing_ok=True)
    progress.begin(f"poses ({options.mapper})", n, "pictures")
    found = [(path, sfm.read(path)) for path in sfm.map(options.mapper, folder, progress.count)]
    found.sort(key=lambda pair: (len(pair[1].poses), pair[1].n_points), reverse=True)
    if found:
        shutil.copytree(found[0][0], sparse / "0")
    stages.finish("model", [path.name for path, _ in found])
    return [model for _, model in found]


def _list(value: object) -> list[str]:
    return [str(part) for part in value] if isinstance(value, list) else []


def _two_lists(value: object) -> tuple[list[str], list[str]]:
    first, second = value if isinstance(value, list) and len(value) == 2 else ([], [])
    return _list(first), _list(second)
