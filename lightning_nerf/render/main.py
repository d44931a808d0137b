"""Renders a trained scene: held-out views, an orbit, a spiral or the cameras of a file, as PNG files, GIF or MP4.

  lightning-nerf render runs/synthetic/instant_ngp/version_0 --path orbit --out orbit.gif
  lightning-nerf render last.ckpt --path orbit --out orbit.mp4 --resolution 1920 1080
  lightning-nerf render last.ckpt --path orbit --times 0.5 --out frozen.gif
  lightning-nerf render last.ckpt --path test:3 --times 0:1 --out still_camera.gif
  lightning-nerf render last.ckpt --path cameras.json --channels rgb depth --out frames/ --data.root moved/to/lego
  lightning-nerf render -c blender/instant_ngp --data.root path/to/lego --ckpt last.ckpt

The checkpoint says what model and data it is of; a recipe takes the place of that. All further arguments are as for
`lightning-nerf test` (--data.root, --trainer.accelerator, ...).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import torch
from tqdm import tqdm

from lightning_nerf.cameras.cameras import Cameras, image_rays
from lightning_nerf.cameras.paths import box_distances
from lightning_nerf.checkpoint_io import is_url
from lightning_nerf.checks import BadArgument, MissingFile
from lightning_nerf.cli_errors import refusals_in_a_line, unknown
from lightning_nerf.cli_quiet import quiet
from lightning_nerf.cli_words import checkpoint_in, one_of
from lightning_nerf.data.base import BACKGROUNDS
from lightning_nerf.files import named_errors
from lightning_nerf.render.cameras import FRAMES, PATHS, choose_cameras, is_view
from lightning_nerf.render.pictures import CHANNELS, check_channels, numbers, picture
from lightning_nerf.render.scene import TrainedScene, load
from lightning_nerf.render.times import option_like_time, parse_times
from lightning_nerf.render.writers import Writer, check_out, open_writers
from lightning_nerf.types import Render

_SECTIONS = ("model", "data", "trainer", "seed_everything", "print_config")  # LightningCLI's options without a dot


def main(args: Sequence[str] | None = None) -> list[Path]:
    """Run ``lightning-nerf render ARGS``; prints and returns the paths of what it wrote, one per channel."""
    options, rest = parse(list(sys.argv[2:] if args is None else args))
    with quiet(), refusals_in_a_line("lightning-nerf render"):
        check(options)
        try:
            scene = load(options.ckpt, options.config, rest, options.allow)
            cameras, names = choose_cameras(options, scene)
        except FileNotFoundError as error:
            if options.config or str(error).startswith("--"):
                raise
            hint = f"as {options.ckpt} has it; if that has moved, --data.root=... or the like says where it is"
            raise MissingFile(f"{error} ({hint})") from error
        check_out(options.out, len(names))
        check_channels(options.channels, _one_ray(scene, cameras))
        return render(options, scene, cameras, names, _depth_range(options, scene, cameras))


def parse(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """This command's options, and what is LightningCLI's."""
    parser = argparse.ArgumentParser(
        prog="lightning-nerf render",
        usage="lightning-nerf render [RUN_FOLDER | CKPT | -c RECIPE --ckpt CKPT] [arguments]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-c", "--config", action="append", default=[], metavar="RECIPE", help="a recipe's short name or file; repeatable")
    add("--ckpt", nargs="+", metavar="CKPT", help="the checkpoint: a file, a URL, or a run's folder")
    add("--allow", action="append", default=[], metavar="PACKAGE", help="""a package whose classes the checkpoint may name;
        repeatable. Without it a checkpoint is made of this package's classes alone""")  # fmt: skip
    add("--path", default="test", metavar="test|val|train|test:VIEW|orbit|spiral|FILE.json", help="""the
        cameras: held-out views (default), those of the validation or of the training; one of these views, by its name or
        its number from 0 on, as in test:3; a turn around the scene that loops; two turns that rise from the lowest training
        camera to the highest; or the cameras of a transforms.json, whose pictures need not exist""")  # fmt: skip
    add("--times", nargs="+", metavar="T", help="""when, of a dynamic scene: T, one time for all frames; A:B, even steps
        from A to B; A:B:A, there and back, which loops; or a time for each frame. Default: the times that the views or the
        file's frames have; for orbit and spiral, from the first time of the training to the last. A path of one camera,
        such as test:3, stands still while the time passes. Where A is below 0: --times=A:B""")  # fmt: skip
    add("--n_frames", type=int, metavar="N", help=f"frames of an orbit, a spiral or a camera that stands still in time, "
        f"default {FRAMES}; of the others, this many, evenly spaced, default all")  # fmt: skip
    add("--elevation", type=float, default=30.0, help="degrees of an orbit above the horizon; default 30")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--resolution", type=int, nargs=2, metavar=("W", "H"), help="""size of the frames; the vertical field
        of view stays, a wider frame sees more on both sides. Default: that of the cameras""")  # fmt: skip
    size.add_argument("--scale", type=float, metavar="S", help="size of the frames as a multiple of the cameras' own")
    add("--fps", type=float, default=30.0, help="frames per second of GIF (rounded to 1/100 s a frame) and MP4; default 30")
    add("--channels", nargs="+", default=["rgb"], metavar="CHANNEL", help="""rgb (default), rgba (transparent), depth,
        opacity, or an extra channel of the field. Depth: mean distance of what is seen along the ray (range, not z), violet
        (near) to yellow (far), or as it is in a .npy; opacity and extras: 0 black, 1 white""")  # fmt: skip
    add("--depth_range", type=float, nargs=2, metavar=("NEAR", "FAR"), help="""distances that are violet and yellow;
        default the least and the greatest from any camera to the scene's box, the same for all frames""")  # fmt: skip
    add("--out", type=Path, metavar="FOLDER|FILE", help="""a folder for PNG files, FILE.gif, FILE.mp4 (needs
        ffmpeg), FILE.npy (float32, unclamped: [H, W] or [frames, H, W], and channels), or FILE.png for a single
        frame; default the folder renders/PATH. Several channels get a folder or
        a file each""")  # fmt: skip
    # Only the first words: behind an option the value of an unknown one could be meant.
    n = next((i for i, word in enumerate(args) if word.startswith("-")), len(args))
    positional, args = args[:n], args[n:]
    if (wrong := option_like_time(args)) is not None:
        parser.exit(2, f"lightning-nerf render: {wrong}\n")
    options, rest = parser.parse_known_args(args)
    names = [action.dest for action in parser._actions]
    for word in rest:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and "." not in name and name not in _SECTIONS:
            parser.exit(2, f"lightning-nerf render: {unknown(name, names)}\n")
    if positional and options.ckpt is not None:
        parser.error(f"--ckpt: the checkpoint is given twice, as {positional[0]} and as {options.ckpt[0]}")
    given = positional or options.ckpt
    options.ckpt = _checkpoint(one_of("--ckpt", given)) if given else None
    if options.out is None:
        options.out = Path("renders", Path(options.path).stem.replace(":", "_"))
    return options, rest


def _checkpoint(given: str) -> Path | str:
    return given if is_url(given) else checkpoint_in(Path(given))


def check(options: argparse.Namespace) -> None:
    """What can be said before anything is loaded."""
    if options.ckpt is None:
        raise BadArgument("--ckpt: expected a checkpoint, got none; lightning-nerf render --help has examples")
    if not is_url(str(options.ckpt)) and not Path(options.ckpt).is_file():
        raise MissingFile(f"--ckpt: no file {options.ckpt}, nor a run's folder")
    if options.path not in PATHS and not is_view(options.path):
        if not options.path.endswith(".json"):
            raise BadArgument(
                f"--path: expected {', '.join(PATHS)}, one view (test:3) or the name of a .json file, got {options.path!r}"
            )
        if not Path(options.path).is_file():
            raise MissingFile(f"--path: no file {options.path}")
    if options.times is not None:
        parse_times(options.times)
    if options.n_frames is not None and options.n_frames < 1:
        raise BadArgument(f"--n_frames: expected >= 1, got {options.n_frames}")
    if not -90 < options.elevation < 90:
        raise BadArgument(f"--elevation: expected degrees between -90 and 90, got {options.elevation}")
    if options.resolution and min(options.resolution) < 1:
        raise BadArgument(f"--resolution: expected W >= 1 and H >= 1, got {' '.join(map(str, options.resolution))}")
    if options.scale is not None and not 0 < options.scale < math.inf:
        raise BadArgument(f"--scale: expected a number > 0, got {options.scale}")
    if not 0 < options.fps < math.inf:
        raise BadArgument(f"--fps: expected a number > 0, got {options.fps}")
    if options.depth_range and not 0 <= options.depth_range[0] < options.depth_range[1] < math.inf:
        raise BadArgument(f"--depth_range: expected 0 <= NEAR < FAR, got {' '.join(map(str, options.depth_range))}")
    if "rgba" in options.channels and options.out.suffix.lower() in (".gif", ".mp4"):
        raise BadArgument(f"--channels: rgba needs PNG files or .npy, {options.out} holds no transparency")
    check_out(options.out)


def render(
    options: argparse.Namespace, scene: TrainedScene, cameras: Cameras, names: list[str], depth_range: tuple[float, float]
) -> list[Path]:
    """Render all frames and write them, one at a time."""
    background = _background(scene)
    writers = open_writers(options.out, options.channels, options.fps)
    clamped: set[str] = set()

    def shown(seen: Render, channel: str, writer: Writer) -> torch.Tensor:
        if writer.takes_numbers:
            return numbers(seen, channel, background).cpu()
        return picture(seen, channel, depth_range, background)

    height, width = cameras.shape(0)
    try:
        started = monotonic()
        for i, name in enumerate(tqdm(names, desc=f"{options.path}, {width} x {height}", unit="frame")):
            if i == 1 and (said := _long_film(monotonic() - started, len(names))):
                tqdm.write(said, file=sys.stderr)
            with scene.precision():
                seen = scene.module.render_camera(cameras, i, background)
            for channel, writer in writers.items():
                with named_errors(writer.path):
                    writer.add(shown(seen, channel, writer).numpy(), name)
                if not writer.takes_numbers and _exceeds(seen, channel):
                    clamped.add(channel)
    except BaseException:
        for writer in writers.values():
            writer.abort()
        raise
    for writer in writers.values():
        with named_errors(writer.path):
            writer.close()
    for channel in sorted(clamped):
        print(f"lightning-nerf render: {channel} has values beyond [0, 1], shown as 0 or 1", file=sys.stderr)
    paths = [writer.path for writer in writers.values()]
    if "depth" in writers and writers["depth"].takes_numbers:
        print("depth: distance along the ray (range, not z) in the scene's units, NaN where nothing is seen")
    elif "depth" in writers:
        print(f"depth: violet at {depth_range[0]:.4g}, yellow at {depth_range[1]:.4g}")
    if cameras.times is not None and "times" in scene.module.field.wants:
        print(_times_shown(cameras.times.tolist()))
    for path in paths:
        print(path)
    return paths


def _long_film(seconds: float, n_frames: int) -> str:
    """How long a film takes whose first frame took so long; "" where that is no more than a minute."""
    minutes = seconds * n_frames / 60
    if minutes <= 1:
        return ""
    unit = "minute" if minutes < 1.5 else "minutes"
    remedy = "a smaller --scale or fewer --n_frames take less"
    return f"lightning-nerf render: {n_frames} frames will take about {minutes:.0f} {unit}; {remedy}"


def _exceeds(seen: Render, channel: str) -> bool:
    """Whether an extra has values that a picture clamps."""
    return channel not in CHANNELS and bool(((seen.extras[channel] < 0) | (seen.extras[channel] > 1)).any())


def _times_shown(times: list[float]) -> str:
    if min(times) == max(times):
        return f"time: {times[0]:.4g}"
    return f"times: {times[0]:.4g} in the first frame, {times[-1]:.4g} in the last"


def _background(scene: TrainedScene) -> torch.Tensor:
    return torch.full((3,), BACKGROUNDS[scene.data.eval_background], device=scene.module.device)


def _one_ray(scene: TrainedScene, cameras: Cameras) -> Render:
    """The render of one pixel: it has every channel that a frame has."""
    with scene.precision():
        return scene.module.render(image_rays(cameras.to(scene.module.device), 0, 0, 1), _background(scene))


def _depth_range(options: argparse.Namespace, scene: TrainedScene, cameras: Cameras) -> tuple[float, float]:
    if options.depth_range:
        return options.depth_range[0], options.depth_range[1]
    low, high = box_distances(cameras, scene.data.scene_box.aabb)
    return (low, high) if low < high else (scene.data.near, scene.data.far)  # cameras that see nothing of the scene
