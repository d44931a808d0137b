"""The progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from tqdm import tqdm

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.telemetry import Telemetry
from lightning_nerf.checks import check_integer, check_number

T = TypeVar("T")

_TIMES = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
_WIDE = "{desc}: {percentage:3.0f}%|{bar}| " + _TIMES
_NARROW = _TIMES
_BAR = 8  # characters that the bar itself needs, at least


class NeRFProgressBar(TQDMProgressBar):
    """Lightning's bar with training PSNR, rays/s, samples/s and occupied share, read through :class:`Telemetry`.

    It is redrawn as time passes, however long a step or a view takes. Its total is that of the whole fit, also of one that
    was resumed. Where a line is too short for all of it, the bar gives way first, then the words, then the last columns.

    Args:
        refresh_rate: 0 disables the bar; other numbers, which to Lightning's bars are steps between two redraws, make no
            difference.
        refresh_seconds: between two redraws, >= 0; ten times as much where the output is no terminal.
    """

    def __init__(self, refresh_rate: int = 1, refresh_seconds: float = 0.5) -> None:
        check_integer("refresh_rate", refresh_rate, 0)
        check_number("refresh_seconds", refresh_seconds, "[0, inf)")
        super().__init__(refresh_rate=refresh_rate)
        self.refresh_seconds = refresh_seconds
        self._drawn = float("-inf")
        self._epoch_begins = False

    # -- when ----------------------------------------------------------------------------------------------------------

    def _should_update(self, current: int, total: int) -> bool:
        """Whether it is time; Lightning asks after each step and each view."""
        if self.is_disabled:
            return False
        now = time.monotonic()
        pause = self.refresh_seconds * (1 if _is_terminal() else 10)
        if now - self._drawn < pause and current != total:
            return False
        self._drawn = now
        return True

    # -- training ------------------------------------------------------------------------------------------------------

    def init_train_tqdm(self) -> Tqdm:
        """A bar that says "fit": epochs are endless."""
        bar = super().init_train_tqdm()
        bar.set_description_str("fit", refresh=False)
        return bar

    def on_train_start(self, *args: Any) -> None:
        """Begin: a fit that goes on in the middle of an epoch does not start one."""
        super().on_train_start(*args)
        self._epoch_begins = True

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Begin anew; the first step says where."""
        self._epoch_begins = True

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """At the first step, have the bar know how many steps were done before, and how many there will be."""
        if not self._epoch_begins:
            return
        self._epoch_begins = False
        bar = self.train_progress_bar
        bar.reset()
        bar.total = _total_batches(trainer, batch_idx)
        bar.initial = bar.n = bar.last_print_n = batch_idx  # its speed is of the steps since
        if trainer.num_training_batches != float("inf"):
            bar.set_description_str(f"epoch {trainer.current_epoch}", refresh=False)
        self._drawn = float("-inf")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw where it is time."""
        bar = self.train_progress_bar
        if self._should_update(batch_idx + 1, -1 if bar.total is None else int(bar.total)):
            self._draw(trainer, pl_module, batch_idx + 1)
        if 0 <= trainer.max_steps <= trainer.global_step:
            bar.close()  # ends its line: what Lightning says of the end of a fit comes before `on_train_end`

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Redraw."""
        if not self.train_progress_bar.disable:
            self._draw(trainer, pl_module, int(self.train_progress_bar.n))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close its bar."""
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """End the lines of all bars, so that the error has one of its own."""
        for bar in (self._train_progress_bar, self._val_progress_bar, self._test_progress_bar, self._predict_progress_bar):
            if bar is not None:
                bar.close()

    # -- what ----------------------------------------------------------------------------------------------------------

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The metrics shown behind the bar."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        items = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in items.items()}
        telemetry = next((c for c in lightning_names.callbacks(trainer) if isinstance(c, Telemetry)), None)
        latest = {} if telemetry is None else telemetry.latest
        shown = {}
        if "train/psnr" in latest:
            shown["psnr"] = f"{latest['train/psnr']:.2f}"
        for key, name in [("rays/s", "train/rays_per_second"), ("samples/s", "train/samples_per_second")]:
            if name in latest:
                shown[key] = tqdm.format_sizeof(latest[name])
        if "train/occupied" in latest:
            shown["occupied"] = f"{latest['train/occupied']:.0%}"
        return {**shown, **items}

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule, done: int) -> None:
        bar = self.train_progress_bar
        bar.n = done
        columns = self.get_metrics(trainer, pl_module)
        meter = bar.format_dict
        width = meter["ncols"] or 10_000
        for bar_format, postfix in _layouts(columns):
            whole = tqdm.format_meter(**{**meter, "ncols": None, "bar_format": bar_format.replace("{bar}", "#" * _BAR),
                                         "postfix": postfix})  # fmt: skip
            bar.bar_format, bar.postfix = bar_format, postfix
            if len(whole) < width:
                break
        bar.refresh()


def _layouts(columns: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Format and columns of the line, from the longest to the shortest."""
    names = {"psnr": "{} dB", "rays/s": "{} rays/s", "samples/s": "{} samples/s", "occupied": "{} occupied"}
    brief = {"psnr": "{}dB", "rays/s": "{}rays/s", "samples/s": "{}smp/s", "occupied": "{}occ"}
    for bar_format, words in ((_WIDE, names), (_NARROW, names), (_NARROW, brief)):
        yield bar_format, ", ".join(words.get(name, f"{name}={{}}").format(value) for name, value in columns.items())
    parts = [brief.get(name, f"{name}={{}}").format(value) for name, value in columns.items()]
    while parts:
        parts.pop()
        yield _NARROW, ", ".join(parts)


def _total_batches(trainer: L.Trainer, done: int) -> int | None:
    """Batches of the epoch, which for a fit of steps is the fit; None where it is endless."""
    total = float(trainer.num_training_batches)
    if trainer.max_steps >= 0:
        left = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
        total = min(total, done + left)
    return None if total == float("inf") else int(total)


def _is_terminal() -> bool:
    return bool(getattr(sys.stdout, "isatty", lambda: False)())


def shown(trainer: L.Trainer, items: Iterable[T], what: str, unit: str, leave: bool = True) -> Iterable[T]:
    """The items, with a bar of their own where the Trainer shows progress; for what a callback does for long."""
    bar = trainer.progress_bar_callback
    if bar is None or getattr(bar, "is_disabled", False) or not trainer.is_global_zero:
        return items
    return tqdm(items, desc=what, unit=unit, file=sys.stdout, dynamic_ncols=True, mininterval=0.5, leave=leave)
