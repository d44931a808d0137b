"""What a command prints at its end: the score, where its files are, what to type next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import lightning as L

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.results import RunResults
from lightning_nerf.callbacks.run_folder import run_folder
from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.recorded import Plain, Recorded, described

_SPLITS = {"fit": "test", "test": "test", "validate": "val"}
_VIEWS = {"test": "held-out", "val": "validation"}
# What `render` has imported anyway, and a script, which --allow cannot import.
_IMPORTED = {"lightning_nerf", "lightning", "torch", "numpy", "builtins", "__main__"}


class Score(NamedTuple):
    """What was measured of a split, and on what."""

    scene: str
    split: str
    n_views: int
    background: str
    psnr: float
    ssim: float | None
    mean_image: float | None = None  # PSNR of predicting the mean training image

    def __str__(self) -> str:
        numbers = f"PSNR {self.psnr:.2f} dB" + ("" if self.ssim is None else f", SSIM {self.ssim:.4f}")
        floor = "" if self.mean_image is None else f" ({self.mean_image:.2f} dB by predicting the mean training image)"
        views = f"{self.n_views} {_VIEWS[self.split]} view{'s'[: self.n_views != 1]}"
        return f"{self.scene}: {numbers} over {views} on {self.background}{floor}"


def report(trainer: L.Trainer, data: NeRFDataModule, command: str, following: str | None) -> None:
    """Print the score of ``fit``, ``test`` or ``validate``, the run folder and what is in it, and the next command.

    Args:
        trainer: which has just run the command.
        data: what was scored.
        command: its name.
        following: the next command; None where there is none to suggest.
    """
    folder = run_folder(trainer)  # on every rank: it asks rank 0
    if not trainer.is_global_zero:
        return
    split = _SPLITS[command]
    score = _score(trainer, data, split, folder)
    if split == "test" and not data.source.has_test_views():
        said = f"{command}: nothing was tested, since the data have no test views"
    elif score is None:
        said = f"{command}: no callback has scored the views; --trainer.callbacks+=PSNRLogger does"
    else:
        said = f"{score}{_trained(trainer, folder) if command == 'fit' else ''}"
    print(f"\n{said}")
    if not lightning_names.fast_dev_run(trainer):  # the folder of a trial is removed
        if written := _written(folder, split):
            print(f"written: {', '.join(written)}")
        print(folder)
        if following is not None:
            print(f"next: {following}")


def _score(trainer: L.Trainer, data: NeRFDataModule, split: str, folder: Path) -> Score | None:
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    psnr, ssim, floor = metrics.get(f"{split}/psnr"), metrics.get(f"{split}/ssim"), None
    batches = trainer.num_test_batches if split == "test" else trainer.num_val_batches
    n_views = sum(int(n) for n in batches) * trainer.world_size
    if split == "test" and (results := _results(trainer, folder)):
        n_views, psnr, ssim, floor = (results[key] for key in ("images", "psnr", "ssim", "psnr_of_mean_image"))
    if psnr is None or not n_views:
        return None
    return Score(data.scene_name, split, n_views, data.eval_background, psnr, ssim, floor)


def _trained(trainer: L.Trainer, folder: Path) -> str:
    """How long a fit has trained, as results.json has it."""
    results = _results(trainer, folder)
    if not results:
        return ""
    seconds = results["training_seconds"]  # None where the checkpoint of a finished run was resumed
    return "; no step was left" if seconds is None else f"; {results['steps']} steps in {seconds:.1f} s"


def _written(folder: Path, split: str) -> list[str]:
    pattern = f"{split}_*.png"
    found = ["results.json"] if split == "test" and (folder / "results.json").is_file() else []
    found += [f"images/{pattern}"] if any((folder / "images").glob(pattern)) else []
    return found + (sorted(path.name for path in folder.glob("turntable.*")) if split == "test" else [])


def render_command(checkpoint: Path | str, allow: Sequence[str] = ()) -> str:
    """The command that films what a checkpoint, or the newest of a run's folder, holds."""
    allowed = [word for package in allow for word in ("--allow", package)]
    return shlex.join(["lightning-nerf", "render", str(checkpoint), *allowed, "--path", "orbit", "--out", "orbit.gif"])


def packages(*parts: Recorded) -> list[str]:
    """The packages, beside this one and torch, of the classes that these objects were made of."""
    return sorted({path.partition(".")[0] for part in parts for path in _class_paths(described(part))} - _IMPORTED)


def _class_paths(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _class_paths(item)
    elif isinstance(value, dict):
        if isinstance(path := value.get("class_path"), str):
            yield path
        for item in value.values():
            yield from _class_paths(item)


def _results(trainer: L.Trainer, folder: Path) -> Plain:
    """What results.json says, if this run has written it: a folder of a given version may have an older one."""
    path = folder / "results.json"
    writes = any(isinstance(callback, RunResults) for callback in lightning_names.callbacks(trainer))
    return json.loads(path.read_text()) if writes and path.is_file() else {}
