"""What a module's checkpoint says of its constructor, and which checkpoints a module takes."""

from __future__ import annotations

import inspect
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.core.saving import CHECKPOINT_PAST_HPARAMS_KEYS
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_nerf import lightning_names
from lightning_nerf.arguments import Recorded, build, described, differences
from lightning_nerf.callbacks.ema import RAW_WEIGHTS
from lightning_nerf.checkpoint_content import check_sections
from lightning_nerf.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from lightning_nerf.checks import BadArgument
from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.modules.compiled import strip_in_place, strip_names, unwrap_all
from lightning_nerf.recorded import Plain
from lightning_nerf.scene_box import CONTRACTIONS

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

    A part that ``torch.compile`` wraps, as in ``module.field = torch.compile(module.field)``, stays compiled and loses the
    wrapper when weights are saved or loaded, or a fit begins: checkpoints are the same with and without it.
    """

    field: RadianceField

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_pre_hook(unwrap_all)
        self.register_load_state_dict_pre_hook(strip_in_place)

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

    def save_hyperparameters(self, *args: Any, ignore: object = None, frame: object = None, logger: bool = True) -> None:
        """Nothing is left to do: arguments are recorded anyway. ``logger=False`` keeps them from loggers.

        A dict adds its entries to ``hparams``.
        """
        lightning_names.set_logs_hyperparams(self, logger)
        if args and not all(isinstance(a, str) for a in args):
            super().save_hyperparameters(*args, logger=logger)

    def on_save_checkpoint(self, checkpoint: Plain) -> None:
        """Say what the module was made of, for ``on_load_checkpoint`` to compare, and of which data this is."""
        checkpoint[PARTS_KEY] = {name: described(getattr(self, name)) for name in PARTS}
        datamodule = lightning_names.datamodule(lightning_names.attached_trainer(self))
        if isinstance(datamodule, NeRFDataModule):
            checkpoint[NeRFDataModule.CHECKPOINT_HYPER_PARAMS_KEY] = described(datamodule)

    def on_load_checkpoint(self, checkpoint: Plain) -> None:
        """Refuse another architecture's or another scene's checkpoint, and one that is malformed.

        Raises:
            BadArgument: names what differs, what came and what was expected.
        """
        check_sections(checkpoint)
        for section in ("state_dict", RAW_WEIGHTS):  # written with a module that torch.compile had wrapped
            if isinstance(weights := checkpoint.get(section), dict) and all(isinstance(name, str) for name in weights):
                checkpoint[section] = strip_names(weights)
        if self.strict_loading:
            refuse_another(self, checkpoint)
        check_weights(self, checkpoint)
        # For callbacks that check what Lightning restores after this: it asks none where a checkpoint has no states of any.
        checkpoint.setdefault("callbacks", {})

    def write_atomically(self) -> None:
        """Have this Trainer's checkpoints written whole or not at all, unless it was given a CheckpointIO."""
        strategy = self.trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = AtomicCheckpointIO()
        if isinstance(strategy.checkpoint_io, AtomicCheckpointIO):
            strategy.checkpoint_io.lightning_only = True

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        allow: Sequence[str] = (),
        **kwargs: Any,
    ) -> Self:
        """The module that a checkpoint holds, of the class that it names: this one or a subclass.

        Args:
            checkpoint_path: a file, local or remote, or an open one.
            map_location: as of :func:`torch.load`.
            hparams_file: as of :meth:`lightning.LightningModule.load_from_checkpoint`.
            strict: whether keys, shapes and the field's arguments have to agree; None: the module's ``strict_loading``.
            weights_only: False also reads Python objects, whose code then runs.
            allow: packages, such as ``["nerf_plugin"]``, whose classes the checkpoint may name although they have not been
                imported; see :func:`lightning_nerf.arguments.build`.
            kwargs: arguments of the constructor in place of the recorded ones.

        Raises:
            BadArgument: the checkpoint is malformed, of another class, or names one of a package that is not allowed; or an
                argument has no name (a lambda, a class within a function), or is a function, and is not given here.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location, weights_only)
        check_sections(checkpoint)
        spec = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {})
        if not isinstance(spec, dict):
            raise BadArgument(f"{cls.CHECKPOINT_HYPER_PARAMS_KEY}: expected a dict, got {type(spec).__name__}")
        if hparams_file is not None or not {"class_path", "unnamed"} & spec.keys():  # not of our making
            return cls._load_as_lightning(checkpoint, hparams_file, strict, **kwargs)
        module = build(spec, cls, allow=allow, **kwargs)
        module.configure_model()
        strict = module.strict_loading if strict is None else strict
        module.strict_loading, own = strict, module.strict_loading
        module.on_load_checkpoint(checkpoint)
        keys = load_weights(module, checkpoint["state_dict"], strict)
        module.strict_loading = own
        if keys.missing_keys or keys.unexpected_keys:
            rank_zero_warn(f"not in the checkpoint: {keys.missing_keys}; not in the module: {keys.unexpected_keys}")
        device = next((t.device for t in checkpoint["state_dict"].values() if isinstance(t, Tensor)), torch.device("cpu"))
        return module.to(device)

    @classmethod
    def _load_as_lightning(
        cls, checkpoint: Plain, hparams_file: str | Path | None, strict: bool | None, **kwargs: Any
    ) -> Self:
        """The module of a checkpoint that does not hold our record of the arguments."""
        buffer = io.BytesIO()  # of what was read: Lightning would fetch a URL again, and then run what it brings
        plain = {k: v for k, v in checkpoint.items() if k not in ("hparams_type", *CHECKPOINT_PAST_HPARAMS_KEYS)}
        torch.save({"pytorch-lightning_version": L.__version__, **plain}, buffer)
        buffer.seek(0)
        if "_instantiator" in plain.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}):
            raise BadArgument(
                "hyper_parameters: the checkpoint names a function that is to make the module; none is called"
            )
        try:
            return super().load_from_checkpoint(buffer, None, hparams_file, strict, False, **kwargs)
        except (BadArgument, OSError):
            raise
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise BadArgument(
                f"{cls.__name__}: cannot be made of the checkpoint ({type(error).__name__}: {reason})"
            ) from error


def load_weights(module: torch.nn.Module, weights: Plain, strict: bool) -> Any:
    """``module.load_state_dict``, whose errors are the checkpoint's fault.

    Raises:
        BadArgument: keys or shapes differ, in words of torch.
    """
    try:
        return module.load_state_dict(weights, strict=strict)
    except Exception as error:
        raise BadArgument(f"state_dict: does not fit {type(module).__name__} ({' '.join(str(error).split())})") from error


def check_weights(module: CheckpointedModule, checkpoint: Plain) -> None:
    """Raise a BadArgument where something that is no tensor, or of another shape, would take a weight's place."""
    expected = module.state_dict()
    raw = checkpoint.get(RAW_WEIGHTS, {})
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise BadArgument(f"{RAW_WEIGHTS}: expected a dict of names and weights")
    for section, weights in (("state_dict", checkpoint["state_dict"]), (RAW_WEIGHTS, raw)):
        for key, weight in weights.items():
            own = expected.get(key)
            if isinstance(own, Tensor) and (_shape(weight) != _shape(own) or weight.is_complex()):
                raise BadArgument(f"{section}[{key!r}]: came {_shape(weight)}, expected {_shape(own)}")
    for key in ("field.aabb", "estimator.aabb"):
        box, own = checkpoint["state_dict"].get(key), expected.get(key)
        if not isinstance(box, Tensor) or box.numel() % 6 != 0:
            continue
        if box.isnan().all():  # no scene was bound
            if isinstance(own, Tensor) and own.isfinite().all():
                raise BadArgument(f"{key}: expected a scene's box, as this {type(module).__name__} has, got none (NaN)")
            continue
        corners = box.float().cpu().reshape(-1, 2, 3)
        if not bool(torch.isfinite(corners).all() and (corners[:, 0] < corners[:, 1]).all()):
            raise BadArgument(f"{key}: expected a minimum corner and a maximum corner above it, got {box.tolist()}")


def refuse_another(module: CheckpointedModule, checkpoint: Plain) -> None:
    """Raise a ValueError that says how a checkpoint's architecture or scene box differs from a module's, if it does."""
    came, expected = checkpoint["state_dict"], module.state_dict()
    shapes = [
        f"state_dict[{key!r}]: came {_shape_in(came, key)}, expected {_shape_in(expected, key)}"
        for key in {**expected, **came}
        if _shape_in(came, key) != _shape_in(expected, key)
    ]
    theirs = checkpoint.get(PARTS_KEY, {})
    if not isinstance(theirs, dict):
        raise BadArgument(f"{PARTS_KEY}: expected a dict, got {type(theirs).__name__}")
    arguments = {p: differences(theirs.get(p), described(getattr(module, p)), p) for p in PARTS if p in theirs}
    free = tuple(f"field.{name}:" for name in module.field.free_arguments)
    arguments["field"] = [line for line in arguments.get("field", []) if not line.startswith(free)]
    # What a field's weights mean depends on all its arguments; an estimator's thresholds may change.
    lines = [line for part in arguments.values() for line in part] + shapes if shapes else arguments["field"]
    if lines:
        shown = "\n  ".join(lines[:12] + [f"and {len(lines) - 12} more"] * (len(lines) > 12))
        raise BadArgument(
            f"checkpoint: of another architecture than this {type(module).__name__} (lay the same overlays over it, "
            f"or take the run's own config.yaml)\n  {shown}"
        )
    for key in ("field.aabb", "estimator.aabb"):
        if key in came and key in expected:
            refuse_another_box(came[key], expected[key], "the checkpoint's")
    came_as, expected_as = (_contraction(weights) for weights in (came, expected))
    if came_as != expected_as and module.field.is_bound:
        refuse_another_contraction(came_as, expected_as, "the checkpoint's")


def refuse_another_box(came: Tensor, expected: Tensor, whose: str) -> None:
    """Raise a ValueError if both boxes [2, 3] are known and differ."""
    came, expected = came.float().cpu(), expected.float().cpu()
    if came.isfinite().all() and expected.isfinite().all() and not torch.equal(came, expected):
        raise BadArgument(f"scene_box: {whose} is {came.tolist()}, expected {expected.tolist()}")


def refuse_another_contraction(came: int, expected: int, whose: str) -> None:
    """Raise a ValueError if two indices in CONTRACTIONS differ: what weights mean depends on it."""
    if came != expected:
        names = [CONTRACTIONS[i] if 0 <= i < len(CONTRACTIONS) else str(i) for i in (came, expected)]
        raise BadArgument(f"contraction: {whose} is {names[0]!r}, expected {names[1]!r}")


def _contraction(weights: Mapping[str, Any]) -> int:
    index = weights.get("field.contraction")
    return int(index) if isinstance(index, Tensor) and index.numel() == 1 else 0


def _shape_in(weights: Mapping[str, Any], key: str) -> list[int] | str:
    return _shape(weights[key]) if key in weights else "nothing"


def _shape(value: object) -> list[int] | str:
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__
