"""Evaluates and saves averaged weights while training goes on from the raw ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_nerf import lightning_names
from lightning_nerf.checks import BadArgument
from lightning_nerf.optim import FusedAdam
from lightning_nerf.recorded import Plain

RAW_WEIGHTS = "raw_weights"  # their key in a checkpoint


class EMAWeights(L.Callback):
    """Use the average of the weights that :class:`lightning_nerf.optim.FusedAdam` keeps with ``ema_decay``.

    Which weights are used where:

    ==================================================  ==========================================================
    training steps, grid updates                        raw
    validation within a fit                             averaged; afterwards the raw ones are back, bit for bit
    the module after a fit, so test, predict, export    averaged
    a checkpoint's ``state_dict``: what                 averaged
    ``load_from_checkpoint``, ``test(ckpt_path=...)``
    and export load
    ``fit(ckpt_path=...)``                              raw; they travel beside, under ``raw_weights``
    another fit of the same module and callback         raw, unless its weights were set in between
    ==================================================  ==========================================================

    A fit that ends in an exception leaves the module its raw weights. Buffers (the occupancy grid) are not averaged.
    Weights keep their place in memory; what is written there counts in their ``_version``.

    With another optimizer, or without ``ema_decay``, this does nothing and warns once. Beside Lightning's
    ``WeightAveraging`` it does nothing either: what is then evaluated and saved is that callback's average. It refuses
    ``ModelCheckpoint(save_weights_only=True)``, for which Lightning asks no callback: that would hold raw weights.
    """

    def __init__(self) -> None:
        # What the module's parameters held before they were averaged, and their versions just after.
        self._raw: dict[Tensor, tuple[Tensor, int]] = {}
        self._active = False
        self._warned = False

    # -- the weights ---------------------------------------------------------------------------------------------------

    @contextmanager
    def averaged(self, pl_module: L.LightningModule, trainer: L.Trainer) -> Iterator[None]:
        """Within it the module holds averaged weights; for callbacks that evaluate in the middle of training."""
        if self._raw:
            yield
            return
        self._average(trainer)
        try:
            yield
        finally:
            self._restore()

    @torch.no_grad()
    def _average(self, trainer: L.Trainer) -> None:
        if self._raw:
            return
        for p, average in _averages(trainer).items():
            raw = p.detach().clone()
            p.copy_(average)
            self._raw[p] = (raw, p._version)

    @torch.no_grad()
    def _restore(self) -> None:
        for p, (raw, _) in self._raw.items():
            p.copy_(raw)
        self._raw = {}

    def _untouched(self) -> bool:
        """False where someone has set weights since: a checkpoint, ``load_state_dict``. The kept raw ones are void then."""
        return all(p._version == version for p, (_, version) in self._raw.items())

    # -- when ----------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Before another fit, give the module its raw weights back."""
        if stage != "fit":
            return
        own = set(pl_module.parameters())
        if own.issuperset(self._raw) and self._untouched():
            self._restore()
        self._raw = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See whether there is an average to use."""
        groups = [group for o in trainer.optimizers if isinstance(o, FusedAdam) for group in o.param_groups]
        self._active = any(group["ema_decay"] is not None for group in groups)
        other = [type(c).__name__ for c in lightning_names.callbacks(trainer) if lightning_names.is_weight_averaging(c)]
        if other and self._active:
            rank_zero_info(f"EMAWeights does nothing: {other[0]} says which average of the weights is used")
            self._active = False
            return
        if not self._active:
            if not self._warned:
                rank_zero_warn("EMAWeights does nothing: no optimizer is a lightning_nerf.optim.FusedAdam with ema_decay.")
            self._warned = True
            return
        if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
            raise MisconfigurationException(
                "EMAWeights: ModelCheckpoint(save_weights_only=True) would save raw weights; leave it False"
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Average, within a fit; elsewhere the module holds what it should."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._average(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on from the raw weights."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Go on from the raw weights, if a validation was cut short."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._restore()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Average for good: the last checkpoint is written, module and optimizer are back on the CPU."""
        self._average(trainer)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> Plain:
        """Not empty where weights are averaged, so that Lightning warns when a resuming Trainer lacks this callback."""
        return {"active": True} if self._active else {}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: Plain) -> None:
        """Averaged weights in ``state_dict``, raw ones beside."""
        weights = checkpoint["state_dict"]
        names = {n: p for n, p in pl_module.named_parameters(remove_duplicate=False) if n in weights}
        raw: dict[str, Tensor] = {}
        if self._raw and self._untouched():  # the module holds averaged weights
            raw = {name: self._raw[p][0] for name, p in names.items() if p in self._raw}
        elif not self._raw and trainer.state.fn == TrainerFn.FITTING:
            averages = _averages(trainer)
            raw = {name: weights[name] for name, p in names.items() if p in averages}
            weights.update({name: averages[names[name]] for name in raw})
        if raw:
            checkpoint[RAW_WEIGHTS] = raw

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: Plain) -> None:
        """A fit goes on from the raw weights; whatever else keeps the averaged ones that were just loaded.

        As in ``state_dict``, names that the module does not have are an error, or skipped with ``strict_loading=False``.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        parameters = dict(pl_module.named_parameters(remove_duplicate=False))
        saved = checkpoint.get(RAW_WEIGHTS, {})
        unknown = [name for name in saved if name not in parameters]
        if unknown and pl_module.strict_loading:
            raise BadArgument(
                f"EMAWeights: the checkpoint has {RAW_WEIGHTS!r} that {type(pl_module).__name__} has no parameters for: "
                f"{', '.join(unknown)}; rename them as in 'state_dict', or set strict_loading=False on the module"
            )
        for name, raw in saved.items():
            if name in parameters:
                parameters[name].copy_(raw)


def _averages(trainer: L.Trainer) -> dict[Tensor, Tensor]:
    if any(lightning_names.is_weight_averaging(callback) for callback in lightning_names.callbacks(trainer)):
        return {}  # two averages would overwrite each other
    optimizers = [o for o in trainer.optimizers if isinstance(o, FusedAdam)]
    return {p: average for o in optimizers for p, average in o.averaged().items()}
