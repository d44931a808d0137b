"""What a module's checkpoint says of its constructor, and which checkpoints a module takes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_nerf.arguments import Recorded, build, described, differences
from lightning_nerf.callbacks.loggers import WANDB_RUN_KEY, wandb_run
from lightning_nerf.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from lightning_nerf.checks import BadArgument
from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.files import check_writable

if TYPE_CHECKING:
    from typing_extensions import Self

    from lightning_nerf.fields.base import RadianceField

PARTS = ("field", "estimator", "renderer")
PARTS_KEY = "nerf_parts"  # their descriptions' key in a checkpoint


class CheckpointedModule(Recorded, L.LightningModule):
    """A LightningModule whose checkpoints hold no Python objects and can be loaded without anything else.

    ``hyper_parameters`` in a checkpoint, and ``hparams`` here, are ``{"class_path": ..., "init_args": {...}}``, see
    :class:`~lightning_nerf.arguments.Recorded`, whether a script, LightningCLI or a checkpoint made the module.

    A checkpoint of a field with other arguments, of other shapes or of another scene box is refused, with a list of what
    differs; ``strict_loading = False`` takes what fits. Other settings (steps, thresholds, rates) may change.
    """

    field: RadianceField

    def record_arguments(self) -> None:
        """Put the constructor's arguments into ``hparams``; a constructor calls it last.

        A field, estimator or renderer left to one of our constructors is described as it came out: our defaults may
        change. What another constructor does with None is its own affair.
        """
        own, constructor = described(self), type(self).__init__
        parameters = (
            inspect.signature(constructor).parameters if constructor.__module__.startswith("lightning_nerf.") else ()
        )
        for name in PARTS:
            if name in parameters and own.get("init_args", {}).get(name, 0) is None:
                own["init_args"][name] = described(getattr(self, name))
        super().save_hyperparameters(own)

    def save_hyperparameters(self, *args: Any, ignore: Any = None, frame: Any = None, logger: bool = True) -> None:
        """Nothing is left to do: arguments are recorded anyway. ``logger=False`` keeps them from loggers.

        A dict adds its entries to ``hparams``.
        """
        self._log_hyperparams = logger
        if args and not all(isinstance(a, str) for a in args):
            super().save_hyperparameters(*args, logger=logger)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the module was made of, for ``on_load_checkpoint`` to compare, of which data and W&B run this is."""
        checkpoint[PARTS_KEY] = {name: described(getattr(self, name)) for name in PARTS}
        datamodule = getattr(self._trainer, "datamodule", None)
        if isinstance(datamodule, NeRFDataModule):
            checkpoint[NeRFDataModule.CHECKPOINT_HYPER_PARAMS_KEY] = described(datamodule)
        if (run := wandb_run(self._trainer)) is not None:
            checkpoint[WANDB_RUN_KEY] = run

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another architecture's or another scene's checkpoint.

        Raises:
            ValueError: names what differs, what came and what was expected.
        """
        if self.strict_loading:
            refuse_another(self, checkpoint)
        former, run = checkpoint.get(WANDB_RUN_KEY), wandb_run(self._trainer)
        if None not in (former, run) and former != run and self.trainer.state.fn == TrainerFn.FITTING:
            rank_zero_warn(
                f"the checkpoint was written by the W&B run {former!r}, and this fit logs to {run!r}; "
                "WandbLogger(id=lightning_nerf.callbacks.loggers.wandb_run_id(path)) would go on in the former"
            )

    def write_atomically(self) -> None:
        """Have this Trainer's checkpoints written whole or not at all, unless it was given a CheckpointIO.

        A fit's must have a folder that can be written to: the first of them may come after hours.
        """
        strategy = self.trainer.strategy
        for callback in self.trainer.checkpoint_callbacks if self.trainer.state.fn == TrainerFn.FITTING else ():
            folder = getattr(callback, "dirpath", None)
            if folder is not None and "://" not in str(folder):
                check_writable("dirpath of ModelCheckpoint", Path(folder))
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = AtomicCheckpointIO()

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """The module that a checkpoint holds, of the class that it names: this one or a subclass.

        Args:
            checkpoint_path: a file, local or remote, or an open one.
            map_location: as of :func:`torch.load`.
            hparams_file: as of :meth:`lightning.LightningModule.load_from_checkpoint`.
            strict: whether keys, shapes and the field's arguments have to agree; None: the module's ``strict_loading``.
            weights_only: as of :func:`torch.load`.
            kwargs: arguments of the constructor in place of the recorded ones.

        Raises:
            ValueError: the checkpoint is of another class, or an argument has no name (a lambda, a class within a
                function) and is not given here.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location, weights_only)
        spec = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {})
        if hparams_file is not None or not {"class_path", "unnamed"} & spec.keys():  # not of our making
            return super().load_from_checkpoint(checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs)
        module = build(spec, cls, **kwargs)
        module.configure_model()
        strict = module.strict_loading if strict is None else strict
        module.strict_loading, own = strict, module.strict_loading
        module.on_load_checkpoint(checkpoint)
        keys = module.load_state_dict(checkpoint["state_dict"], strict=strict)
        module.strict_loading = own
        if keys.missing_keys or keys.unexpected_keys:
            rank_zero_warn(f"not in the checkpoint: {keys.missing_keys}; not in the module: {keys.unexpected_keys}")
        device = next((t.device for t in checkpoint["state_dict"].values() if isinstance(t, Tensor)), torch.device("cpu"))
        return module.to(device)


def refuse_another(module: CheckpointedModule, checkpoint: dict[str, Any]) -> None:
    """Raise a ValueError that says how a checkpoint's architecture or scene box differs from a module's, if it does."""
    came, expected = checkpoint["state_dict"], module.state_dict()
    shapes = [
        f"state_dict[{key!r}]: came {_shape(came.get(key))}, expected {_shape(expected.get(key))}"
        for key in {**expected, **came}
        if _shape(came.get(key)) != _shape(expected.get(key))
    ]
    theirs = checkpoint.get(PARTS_KEY, {})
    arguments = {p: differences(theirs.get(p), described(getattr(module, p)), p) for p in PARTS if p in theirs}
    free = tuple(f"field.{name}:" for name in module.field.free_arguments)
    arguments["field"] = [line for line in arguments.get("field", []) if not line.startswith(free)]
    # What a field's weights mean depends on all its arguments; an estimator's thresholds may change.
    lines = [line for part in arguments.values() for line in part] + shapes if shapes else arguments["field"]
    if lines:
        shown = "\n  ".join(lines[:12] + [f"and {len(lines) - 12} more"] * (len(lines) > 12))
        raise BadArgument(f"checkpoint: of another architecture than this {type(module).__name__}\n  {shown}")
    for key in ("field.aabb", "estimator.aabb"):
        if key in came and key in expected:
            refuse_another_box(came[key], expected[key], "the checkpoint's")


def refuse_another_box(came: Tensor, expected: Tensor, whose: str) -> None:
    """Raise a ValueError if both boxes [2, 3] are known and differ."""
    came, expected = came.float().cpu(), expected.float().cpu()
    if came.isfinite().all() and expected.isfinite().all() and not torch.equal(came, expected):
        raise BadArgument(f"scene_box: {whose} is {came.tolist()}, expected {expected.tolist()}")


def _shape(value: Tensor | None) -> list[int] | str:
    return "nothing" if value is None else list(value.shape) if isinstance(value, Tensor) else type(value).__name__
