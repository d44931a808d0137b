"""A trained module and its data, from a checkpoint and, where that does not describe itself, a recipe."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import yaml

from lightning_nerf.cli import build
from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.modules.base import NeRFModule
from lightning_nerf.recipes import resolve_recipe

_OF_SUBCOMMANDS = ("ckpt_path", "return_predictions", "verbose", "weights_only")
_MODEL, _DATA = "hyper_parameters", "datamodule_hyper_parameters"


class TrainedScene(NamedTuple):
    """A module with the weights of a checkpoint, on its device and ready to render, and the data that it was trained on."""

    module: NeRFModule
    data: NeRFDataModule
    trainer: L.Trainer  # for its precision

    def precision(self) -> AbstractContextManager[Any]:
        """The Trainer's, as in its evaluation."""
        return self.trainer.precision_plugin.forward_context()


def load(checkpoint: Path, recipes: Sequence[str], rest: Sequence[str]) -> TrainedScene:
    """The scene of a checkpoint.

    Args:
        checkpoint: written by a fit of the recipe.
        recipes: what follows each ``-c``; none: the checkpoint's own hyper-parameters say what model and data it is of.
        rest: further arguments of LightningCLI, such as ``--data.root``.

    Raises:
        FileNotFoundError: no such recipe.
        ValueError: the file is no checkpoint, does not describe itself, or does not fit the model.
    """
    content = read_checkpoint(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        if not recipes:
            own = Path(folder, "checkpoint.yaml")
            own.write_text(yaml.safe_dump(described(checkpoint, content)))
            recipes = [str(own)]
        recipes = [
            _without_subcommand(resolve_recipe(recipe), Path(folder, f"{i}.yaml")) for i, recipe in enumerate(recipes)
        ]
        cli = build([*(argument for recipe in recipes for argument in ("-c", recipe)), "--seed_everything=false", *rest])
    module, data, trainer = cli.model, cli.datamodule, cli.trainer
    data.prepare_data()
    module.field.bind(data.scene_box)
    module.estimator.bind(data.scene_box)
    try:
        module.on_load_checkpoint(content)
        module.load_state_dict(content["state_dict"], strict=module.strict_loading)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--ckpt: {checkpoint} does not fit the model ({' '.join(str(error).split())})") from error
    trainer.precision_plugin.convert_module(module)
    module.to(trainer.strategy.root_device).eval()
    return TrainedScene(module, data, trainer)


def _without_subcommand(recipe: str, copy: Path) -> str:
    """The path of a recipe, or of its copy without what a run's ``config.yaml`` says of the subcommand that was run."""
    content = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not any(name in content for name in _OF_SUBCOMMANDS):
        return recipe
    copy.write_text(yaml.safe_dump({name: value for name, value in content.items() if name not in _OF_SUBCOMMANDS}))
    return str(copy)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU. Only tensors and plain values are read, no code that a file brings."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, from wherever a broken file leads the reader
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"--ckpt: {path} cannot be read as a checkpoint ({why})") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"--ckpt: {path} is no Lightning checkpoint: it has no 'state_dict'")
    return content


def described(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The recipe by which a checkpoint describes itself, for one device of this machine.

    Raises:
        ValueError: it does not.
    """
    model, data = (_class_and_arguments(content.get(key)) for key in (_MODEL, _DATA))
    if model is None or data is None:
        lacks = " nor ".join(name for name, found in (("its model", model), ("its data", data)) if found is None)
        raise ValueError(
            f"-c: {path} does not describe {lacks}: name the recipe that it was trained with, e.g. "
            f"lightning-nerf render -c blender/instant_ngp --data.root path/to/scene --ckpt {path}"
        )
    precision = "bf16-mixed" if torch.cuda.is_available() else "32-true"
    trainer = {"accelerator": "auto", "devices": 1, "precision": precision, "logger": False, "enable_checkpointing": False}
    return {"trainer": trainer, "model": model, "data": data}


def _class_and_arguments(saved: Any) -> dict[str, Any] | None:
    """``class_path`` and ``init_args`` of saved hyper-parameters; None where they do not name their class."""
    if not isinstance(saved, dict):
        return None
    if "_class_path" in saved:  # LightningCLI's own way of writing it
        arguments = {name: value for name, value in saved.items() if name not in ("_class_path", "_instantiator")}
        return {"class_path": saved["_class_path"], "init_args": arguments}
    if "class_path" not in saved:
        return None
    return {"class_path": saved["class_path"], "init_args": dict(saved.get("init_args") or {})}
