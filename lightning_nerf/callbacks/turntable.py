"""Renders a turn around the scene."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import lightning as L
import numpy as np

from lightning_nerf.callbacks.colors import to_uint8
from lightning_nerf.callbacks.films import H264, find_ffmpeg, whole_film
from lightning_nerf.callbacks.framing import object_box
from lightning_nerf.callbacks.loggers import log_video, warning_instead
from lightning_nerf.callbacks.progress import shown
from lightning_nerf.callbacks.run_folder import WritesRunFiles, run_folder
from lightning_nerf.callbacks.trained import trained
from lightning_nerf.cameras.paths import orbit, sway
from lightning_nerf.checks import check_integer, check_number


class Turntable(WritesRunFiles):
    """After a test, save ``turntable.mp4`` (``turntable.gif`` where there is no ffmpeg) in the run folder.

    Loggers that take films (WandbLogger) get it as ``test/turntable``.
    The camera circles the middle of the scene's box with the training cameras' intrinsics, at their mean distance or, where
    the object would not fit in the picture, farther away. Where the training views have times, the time passes once, from
    the first of them to the last, while the camera goes round. A scene that is seen from one side (contraction "ndc") is
    filmed from there, see :func:`~lightning_nerf.cameras.paths.sway`. The file takes its name when it is finished.

    Args:
        n_frames: frames of the full turn.
        elevation: degrees above the horizon, between -90 and 90.
        fps: frames per second.
    """

    def __init__(self, n_frames: int = 30, elevation: float = 30.0, fps: int = 15) -> None:
        check_integer("n_frames", n_frames, 1)
        check_number("elevation", elevation, "(-90, 90)")
        check_integer("fps", fps, 1)
        self.n_frames = n_frames
        self.elevation = elevation
        self.fps = fps

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Render and save."""
        folder = run_folder(trainer)  # on every rank: it asks rank 0
        if not trainer.is_global_zero:
            return
        module = trained(pl_module)
        data, background = module.datamodule, module.eval_background()
        box = data.scene_box.aabb
        framed = object_box(module.estimator, box)
        train = data.scene("train").cameras
        if data.scene_box.contraction == "ndc":  # nothing is seen from behind
            cameras = sway(train, box, self.n_frames)
        else:
            cameras = orbit(train, box, self.n_frames, self.elevation, framed)
        views = shown(trainer, range(self.n_frames), "turntable", "frame")
        with trainer.precision_plugin.forward_context():
            frames = [to_uint8(module.render_camera(cameras, i, background).rgb).numpy() for i in views]
        with warning_instead("turntable"):
            log_video(trainer, "test/turntable", save_video(folder / "turntable", np.stack(frames), self.fps))


def save_video(stem: Path, frames: np.ndarray, fps: int) -> Path:
    """Write frames [F, H, W, 3] uint8 as MP4 where ffmpeg is at hand (see :func:`find_ffmpeg`), else as an endless GIF."""
    program = find_ffmpeg()
    path = stem.with_suffix(".gif" if program is None else ".mp4")
    with whole_film(path) as unfinished:
        if program is None:
            imageio.imwrite(unfinished, frames, duration=1000 / fps, loop=0)
        else:
            film = H264(unfinished, fps, program)
            try:
                for frame in frames:
                    film.add(frame)
                film.close()
            except BaseException:
                film.abort()
                raise
    return path
