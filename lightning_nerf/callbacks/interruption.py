"""Ctrl-C and SIGTERM end a run at once, and a fit with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.run_folder import run_folder


class Interruption(L.Callback):
    """End a fit behind the current step, with a checkpoint, when a signal asks the process to end.

    Where no step runs (loading, validation, test, prediction), the signal ends the run at once. A second signal does so
    anywhere, without a checkpoint. A run ends with Lightning's ``SIGTERMException``, a SystemExit, for both signals. Of
    several processes the first one decides behind which step a fit ends.

    Example::

        interruption = Interruption()
        trainer = L.Trainer(callbacks=[interruption])
        with interruption.listening():
            trainer.fit(module, datamodule=data)

    ``received`` is the signal that came, ``path`` the checkpoint that was written; else they are None.
    """

    received: int | None = None
    path: Path | None = None
    _stepping: L.Trainer | None = None  # the Trainer between the start and the end of training
    _listens = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive SIGINT and SIGTERM. Does nothing outside of the main thread, where Python handles no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        self._listens = True
        try:
            yield
        finally:
            self._listens = False
            for number, handler in former.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on a signal waits for the end of the step."""
        self._stepping = trainer
        if self._listens:  # in place of Lightning's handler: it tells each process by itself, and they may stop steps apart
            signal.signal(signal.SIGTERM, self._receive)
        if trainer.world_size > 1:
            self._stop_together(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on it does not."""
        self._stepping = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the checkpoint, if a fit is ended by a signal."""
        self._stepping = None
        if self.received is None and isinstance(exception, SIGTERMException):
            self.received = signal.SIGTERM  # that the first process received
        is_fit = trainer.state.fn == TrainerFn.FITTING and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if not isinstance(exception, SIGTERMException) or not is_fit or not trainer.global_step:
            return
        folder = getattr(trainer.checkpoint_callback, "dirpath", None) or run_folder(trainer) / "checkpoints"
        path = Path(folder, f"interrupted-step={trainer.global_step}.ckpt")
        trainer.save_checkpoint(path, weights_only=False)
        self.path = path

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_second, self.received = self.received is not None, number
        if is_second:
            raise KeyboardInterrupt
        trainer = self._stepping
        if trainer is None or not trainer.training:
            raise SIGTERMException
        if trainer.world_size == 1:
            lightning_names.set_received_sigterm(trainer, True)

    def _stop_together(self, trainer: L.Trainer) -> None:
        """Have all processes stop in front of the same step: where Lightning asks the first one whether to."""

        def ask_with_ours(ask: Callable[[], None]) -> None:
            lightning_names.set_received_sigterm(trainer, self.received is not None)
            ask()  # raises if so, unless the strategy asks seldom
            lightning_names.set_received_sigterm(trainer, False)  # else the loop would stop this process alone

        lightning_names.ask_for_sigterm_through(trainer, ask_with_ours)
