"""Finds the camera poses of your own photos or video, by pycolmap on the CPU: a folder that `fit` trains on.

  lightning-nerf process photos/ scene/
  lightning-nerf process walk.mp4 scene/ --n_frames 150
  lightning-nerf process photos/ scene/ --matcher exhaustive --mapper global
  lightning-nerf fit -c captures/unbounded_prop --data.root scene/

OUT gets images/, sparse/0 (COLMAP's), transforms.json (nerfstudio's and instant-ngp's) and report.json. Ctrl-C keeps what
is done; the same command goes on.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lightning_nerf import cpu_threads
from lightning_nerf.checks import BadArgument, MissingFile
from lightning_nerf.cli_errors import refusals_in_a_line, unknown
from lightning_nerf.files import check_writable
from lightning_nerf.process import video
from lightning_nerf.process.colmap import Colmap, load
from lightning_nerf.process.options import CAMERA_MODELS, MAPPERS, MATCHERS, Options
from lightning_nerf.process.progress import Progress
from lightning_nerf.process.report import Report, show
from lightning_nerf.process.run import check_out, process

_COMMAND = "lightning-nerf process"


def main(args: Sequence[str] | None = None) -> Report:
    """Run ``lightning-nerf process ARGS``; prints the report and returns it."""
    options = parse(list(sys.argv[2:] if args is None else args))
    progress = Progress()
    with refusals_in_a_line(_COMMAND):
        check(options)
        try:
            report = process(options, Colmap, progress)
        except KeyboardInterrupt:
            progress.end()
            print(f"{_COMMAND}: what is done is kept in {options.out}; the same command goes on", file=sys.stderr)
            raise
        finally:
            progress.end()
        for line in show(report):
            print(line)
        if not report.registered:
            raise BadArgument(f"no poses were found, see {options.out / 'report.json'}")
    print(options.out)
    print(f"next: lightning-nerf fit -c captures/unbounded_prop --data.root {shlex.quote(str(options.out))}")
    return report


def parse(args: list[str]) -> Options:
    """The command's options."""
    parser = _Parser(
        prog=_COMMAND,
        usage=f"{_COMMAND} PHOTOS_OR_VIDEO OUT [arguments]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", type=Path, metavar="PHOTOS_OR_VIDEO", help="a folder of JPEG or PNG files, or a video")
    add("out", type=Path, metavar="OUT", help="the folder of the result; a second run in it goes on with what is there")
    frames = parser.add_mutually_exclusive_group()
    frames.add_argument("--fps", type=float, metavar="F", help=f"""of a video: frames to take per second, the sharpest of
        each interval; default {video.FPS:g}, or fewer so that there are at most {video.MOST}""")  # fmt: skip
    frames.add_argument("--n_frames", type=int, metavar="N", help="of a video: frames to take, evenly spread")
    add("--matcher", choices=MATCHERS, default="auto", help="""exhaustive: compare every two pictures; sequential: neighbors
        in the order of names, and some further apart; default auto: sequential for a video or more than 100
        photos""")  # fmt: skip
    add("--mapper", choices=MAPPERS, default="incremental", help="""incremental (default): add picture by picture; global:
        all at once, faster for many""")  # fmt: skip
    add("--camera_model", choices=CAMERA_MODELS, default="OPENCV", metavar="MODEL", help=f"""the lens; default
        OPENCV, which fits phones and cameras. One of {", ".join(CAMERA_MODELS)}""")  # fmt: skip
    add("--single_camera", action=argparse.BooleanOptionalAction, default=None, help="""all pictures of one size share one
        lens and focal length, or each has its own; default: those share that have one size, and one camera and focal length
        in their EXIF data""")  # fmt: skip
    add("--max_size", type=int, default=1600, metavar="PIXELS", help="""look for features in pictures shrunk to this
        longer side; default 1600. OUT keeps the full size""")  # fmt: skip
    add("--threads", type=int, default=cpu_threads.usable_cpus(), metavar="N", help="CPU threads; default all")
    options, rest = parser.parse_known_args(args)
    if rest and rest[0].startswith("-"):
        names = [action.dest for action in parser._actions]
        parser.error(unknown(rest[0].lstrip("-").partition("=")[0], names))
    if rest:
        parser.error(f"expected two paths, PHOTOS_OR_VIDEO and OUT, got {rest[0]} beside them")
    return Options(**vars(options))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line."""
        self.exit(2, f"{_COMMAND}: {message}\n")
        raise AssertionError  # not reached


def check(options: Options) -> None:
    """What can be said before anything is read."""
    source = options.source
    if not source.exists():
        raise MissingFile(f"PHOTOS_OR_VIDEO: no file or folder {source}")
    if not source.is_dir() and source.suffix.lower() not in video.ENDINGS:
        raise BadArgument(f"PHOTOS_OR_VIDEO: expected a folder or a video ({' '.join(video.ENDINGS)}), got {source}")
    if source.is_dir() and not (options.fps is None and options.n_frames is None):
        raise BadArgument(f"--fps, --n_frames: expected a video, got the folder {source}, of which all photos are taken")
    if options.fps is not None and not 0 < options.fps < math.inf:
        raise BadArgument(f"--fps: expected a number > 0, got {options.fps}")
    if options.n_frames is not None and options.n_frames < 3:
        raise BadArgument(f"--n_frames: expected >= 3, got {options.n_frames}")
    if options.max_size < 64:
        raise BadArgument(f"--max_size: expected >= 64, got {options.max_size}")
    if options.threads < 1:
        raise BadArgument(f"--threads: expected >= 1, got {options.threads}")
    check_out(options)
    check_writable("OUT", options.out)
    load()  # before any work is done
