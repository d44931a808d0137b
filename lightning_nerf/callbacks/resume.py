"""Checks an untrusted checkpoint before a fit resumes from it: well-formed, and no paths outside of the run."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.run_folder import existing_run_folder
from lightning_nerf.checkpoint_content import resembling
from lightning_nerf.checkpoint_io import is_url
from lightning_nerf.checks import BadArgument
from lightning_nerf.files import check_writable
from lightning_nerf.recorded import Plain

_LOOPS = {
    TrainerFn.FITTING: "fit_loop",
    TrainerFn.VALIDATING: "validate_loop",
    TrainerFn.TESTING: "test_loop",
    TrainerFn.PREDICTING: "predict_loop",
}
_OF_A_WEIGHT = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "ema", "momentum_buffer", "square_avg", "grad_avg", "sum")


class CheckedResume(L.Callback):
    """Check what Lightning restores from a checkpoint before it does, and the folder of new checkpoints before a fit.

    Lightning removes files that a checkpoint's callbacks name, and sets attributes by a checkpoint's keys. So paths outside
    of the run's own folders are taken out of the callbacks' states, and loops, optimizers and schedulers get numbers where
    they have numbers. Every :class:`~lightning_nerf.modules.NeRFModule` brings this callback.

    Raises:
        BadArgument: names the part that is malformed; or checkpoints could not be written.
    """

    def __init__(self) -> None:
        self._checkpoint: Plain | None = None

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: Plain) -> None:
        """Put callbacks' and loops' states in order. Lightning asks all callbacks this before it restores the first."""
        checkpoint["callbacks"] = cleaned_callbacks(trainer, checkpoint.get("callbacks", {}))
        fn = trainer.state.fn
        if checkpoint.get("loops") is None:
            checkpoint.pop("loops", None)
        elif fn is not None and fn in _LOOPS:
            own = {_LOOPS[fn]: getattr(trainer, _LOOPS[fn]).state_dict()}
            checkpoint["loops"] = resembling(checkpoint["loops"], own, "loops")
        self._checkpoint = checkpoint if fn == TrainerFn.FITTING else None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Optimizers are there by now, and get their states next; and see that checkpoints can be written.

        The first of them may come after hours.
        """
        for callback in trainer.checkpoint_callbacks:
            folder = getattr(callback, "dirpath", None)
            if folder is not None and not is_url(folder):
                check_writable("dirpath of ModelCheckpoint", Path(folder))
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is not None:
            check_training_state(trainer, checkpoint)


# -- paths -------------------------------------------------------------------------------------------------------------


def cleaned_callbacks(trainer: L.Trainer, states: Plain) -> Plain:
    """The callbacks' states of a checkpoint without paths outside of the folders that this run writes to."""
    callbacks = lightning_names.callbacks(trainer)
    checkpoints = [c for c in callbacks if isinstance(c, Checkpoint)]
    folders = [str(c.dirpath) for c in checkpoints if getattr(c, "dirpath", None)]  # type: ignore[attr-defined]
    run = existing_run_folder(trainer)
    everywhere = folders if run is None else [*folders, str(run)]
    cleaned: Plain = {key: _without_paths(state, everywhere) for key, state in states.items()}
    for callback in callbacks:
        key = callback.state_key
        if states.get(key) is None:
            continue
        if not isinstance(states[key], dict):
            raise BadArgument(f"callbacks[{key!r}]: expected a dict, got {type(states[key]).__name__}")
        if isinstance(callback, ModelCheckpoint):
            cleaned.pop(key)
            if (state := _own_state(callback, states[key], folders)) is not None:
                cleaned[key] = state
        elif isinstance(callback, (EarlyStopping, Timer)):
            cleaned[key] = resembling(cleaned[key], callback.state_dict(), f"callbacks[{key!r}]")
    return cleaned


def _own_state(callback: ModelCheckpoint, state: Plain, folders: Sequence[str]) -> Plain | None:
    """A ModelCheckpoint's state with the checkpoints of this run; None if it wrote to another folder.

    In a folder of its own a run has no best checkpoint yet, and nothing to remove.
    """
    if state.get("dirpath") != callback.dirpath:
        return None
    state = {**callback.state_dict(), **{k: v for k, v in state.items() if k in callback.state_dict()}}
    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        if not (isinstance(state[name], str) and is_within(state[name], folders)):
            state[name] = ""
    for name in ("best_model_score", "current_score", "kth_value"):
        if state[name] is not None and _score(state[name]) is None:
            state[name] = callback.state_dict()[name]
    best = state["best_k_models"] if isinstance(state["best_k_models"], dict) else {}
    best = {path: score for path, score in best.items() if isinstance(path, str) and is_within(path, folders)}
    # Lightning looks the worst of them up once there are as many as it keeps.
    worst, few = state["kth_best_model_path"], callback.save_top_k == -1 or len(best) < callback.save_top_k
    if not (worst in best or (worst == "" and few)) or None in map(_score, best.values()):
        best = {}
    if not best:
        state["kth_best_model_path"], state["kth_value"] = "", callback.state_dict()["kth_value"]
    state["best_k_models"] = best
    return state


def _score(value: object) -> float | None:
    """The number that a tensor holds, if it does."""
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() else None


def _without_paths(value: object, folders: Sequence[str]) -> Any:
    if isinstance(value, str):
        return "" if _is_path(value) and not is_within(value, folders) else value
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not (isinstance(k, str) and _without_paths(k, folders) != k)}
        return {k: _without_paths(v, folders) for k, v in kept.items()}
    if isinstance(value, list):
        return [_without_paths(item, folders) for item in value]
    return value


def _is_path(text: str) -> bool:
    """A path that leads out of the current folder, or to something that exists; "val/psnr" is a metric."""
    parts = text.replace("\\", "/").split("/")
    return (
        is_url(text) or os.path.isabs(text) or text.startswith("~") or ".." in parts or (len(parts) > 1 and _exists(text))
    )


def _exists(text: str) -> bool:
    try:
        return os.path.lexists(text)
    except ValueError:  # a zero byte
        return True


def is_within(path: str, folders: Sequence[str]) -> bool:
    """Whether a path lies in one of these folders, wherever links and ``..`` lead."""
    try:
        for folder in folders:
            if is_url(path) or is_url(folder):
                if path.startswith(folder.rstrip("/") + "/") and ".." not in path.split("/"):
                    return True
            elif Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents:
                return True
    except (ValueError, OSError):  # a zero byte, a name that is too long
        pass
    return False


# -- what training goes on from ----------------------------------------------------------------------------------------


def check_training_state(trainer: L.Trainer, checkpoint: Plain) -> None:
    """Raise a BadArgument unless the Trainer's optimizers and schedulers can take the states of a checkpoint.

    Schedulers' states are reduced to what schedulers say of themselves.
    """
    for name in ("optimizer_states", "lr_schedulers"):
        if name not in checkpoint:
            raise BadArgument(f"{name}: expected what training goes on from, got none; the checkpoint has only weights")
    optimizers, configs = trainer.optimizers, trainer.lr_scheduler_configs
    for name, own in (("optimizer_states", optimizers), ("lr_schedulers", configs)):
        if len(checkpoint[name]) != len(own):
            raise BadArgument(f"{name}: expected {len(own)}, as this module has them, got {len(checkpoint[name])}")
    for i, optimizer in enumerate(optimizers):
        _check_optimizer(optimizer, checkpoint["optimizer_states"][i], f"optimizer_states[{i}]")
    for i, config in enumerate(configs):
        name, scheduler = f"lr_schedulers[{i}]", config.scheduler
        state = _scheduler_state(checkpoint["lr_schedulers"][i], scheduler.state_dict(), name)
        with _refusing(name):
            scheduler.load_state_dict(copy.deepcopy(state))
        checkpoint["lr_schedulers"][i] = state


def _check_optimizer(optimizer: Optimizer, state: Any, name: str) -> None:
    kinds = {"state": dict, "param_groups": list}
    for key, kind in kinds.items():
        if not isinstance(state, dict) or not isinstance(state.get(key), kind):
            raise BadArgument(f"{name}: expected a dict with 'state' and 'param_groups', as of an optimizer")
    own = optimizer.state_dict()["param_groups"]
    groups = state["param_groups"]
    if len(groups) != len(own) or not all(isinstance(group, dict) for group in groups):
        raise BadArgument(f"{name}.param_groups: expected {len(own)} groups, got {len(groups)}")
    for i, group in enumerate(groups):
        if not isinstance(group.get("params"), list):
            raise BadArgument(f"{name}.param_groups[{i}].params: expected a list")
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in groups for n in group["params"]]
    if len(numbers) != len(weights) or not all(isinstance(number, int) for number in numbers):
        raise BadArgument(f"{name}.param_groups: expected {len(weights)} numbers of parameters, got {len(numbers)}")
    for number, weight in zip(numbers, weights, strict=True):
        _check_weight(state["state"].get(number, {}), weight, f"{name}.state[{number}]")
    with _refusing(name):
        optimizer.load_state_dict(copy.deepcopy(state))
    for i, (group, mine) in enumerate(zip(optimizer.state_dict()["param_groups"], own, strict=True)):
        numbers = {k: _float(v) for k, v in mine.items() if v is not None and not isinstance(v, Tensor)}
        resembling(group, numbers, f"{name}.param_groups[{i}]")


def _scheduler_state(state: Any, own: Plain, name: str) -> Plain:
    """A scheduler's state with the keys that it has itself. Settings such as milestones may be other ones."""
    if not isinstance(state, dict):
        raise BadArgument(f"{name}: expected a dict, got {type(state).__name__}")
    kept: Plain = {}
    for key, model in own.items():
        value = state.get(key, model)
        if key not in ("last_epoch", "_step_count"):
            model = _float(model)
        if isinstance(model, (bool, int, float, str)) or (isinstance(model, list) and all(type(m) is float for m in model)):
            value = resembling(value, model, f"{name}.{key}")
        elif model is not None and type(value) is not type(model):
            raise BadArgument(f"{name}.{key}: expected a {type(model).__name__}, got {type(value).__name__}")
        kept[key] = value
    return kept


def _float(value: object) -> object:
    """A learning rate may have been an integer."""
    many = isinstance(value, (list, tuple))
    return float(value) if type(value) is int else type(value)(map(_float, value)) if many else value


def _check_weight(state: Any, weight: Tensor, name: str) -> None:
    if not isinstance(state, dict):
        raise BadArgument(f"{name}: expected a dict, got {type(state).__name__}")
    for key in _OF_A_WEIGHT:
        value = state.get(key)
        if value is not None and not (
            isinstance(value, Tensor) and value.shape == weight.shape and value.is_floating_point()
        ):
            came = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise BadArgument(f"{name}.{key}: expected the shape {list(weight.shape)}, got {came}")
    step = state.get("step", 0)
    number = float(step) if isinstance(step, (int, float)) or (isinstance(step, Tensor) and step.numel() == 1) else -1.0
    if not 0 <= number <= 2**53:
        raise BadArgument(f"{name}.step: expected a number >= 0")


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Have any error of the block be the checkpoint's fault."""
    try:
        with torch.no_grad():
            yield
    except BadArgument:
        raise
    except Exception as error:
        raise BadArgument(f"{name}: cannot be restored ({type(error).__name__}: {error!s:.200})") from error
