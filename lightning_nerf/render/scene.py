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

from lightning_nerf.arguments import build
from lightning_nerf.checkpoint_io import read_checkpoint
from lightning_nerf.checks import BadArgument, MissingFile
from lightning_nerf.cli import build as build_cli
from lightning_nerf.cli_errors import BriefParser
from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.modules.base import NeRFModule
from lightning_nerf.modules.checkpoints import load_weights
from lightning_nerf.recipes import resolve_recipe
from lightning_nerf.recorded import Plain

_OF_SUBCOMMANDS = ("ckpt_path", "return_predictions", "verbose", "weights_only")


class TrainedScene(NamedTuple):
    """A module with the weights of a checkpoint, on its device and ready to render, and the data that it was trained on."""

    module: NeRFModule
    data: NeRFDataModule
    trainer: L.Trainer  # for its precision

    def precision(self) -> AbstractContextManager[object]:
        """The Trainer's, as in its evaluation."""
        return self.trainer.precision_plugin.forward_context()


def load(checkpoint: Path | str, recipes: Sequence[str], rest: Sequence[str], allow: Sequence[str] = ()) -> TrainedScene:
    """The scene of a checkpoint.

    Args:
        checkpoint: file or URL, written by a fit of the recipe.
        recipes: what follows each ``-c``; none: the checkpoint itself says what model and data it is of.
        rest: further arguments as LightningCLI's, such as ``--data.root``.
        allow: packages that a checkpoint may have imported where it describes itself.

    Raises:
        FileNotFoundError: no such recipe.
        ValueError: the file is no checkpoint, does not describe itself, or does not fit the model.
    """
    try:
        content = read_checkpoint(checkpoint, "cpu")
    except MissingFile as error:
        raise MissingFile(f"--ckpt: {error.strerror}: {checkpoint}") from error
    if not isinstance(content.get("state_dict"), dict):
        raise BadArgument(f"--ckpt: {checkpoint} is no Lightning checkpoint: it has no 'state_dict'")
    scene = _by_recipes(recipes, rest) if recipes else _by_itself(checkpoint, content, rest, allow)
    module, data, trainer = scene
    data.take_state(content)
    data.prepare_data()
    module.field.bind(data.scene_box)
    module.estimator.bind(data.scene_box)
    try:
        module.on_load_checkpoint(content)
        load_weights(module, content["state_dict"], module.strict_loading)
    except BadArgument as error:
        shorter = f" (by itself it says what it is of: lightning-nerf render {checkpoint})" if recipes else ""
        raise BadArgument(f"--ckpt: {checkpoint} does not fit the model{shorter}: {error}") from error
    trainer.precision_plugin.convert_module(module)
    module.to(trainer.strategy.root_device).eval()
    return scene


def _without_subcommand(recipe: str, copy: Path) -> str:
    """The path of a recipe, or of its copy without what a run's ``config.yaml`` says of the subcommand that was run."""
    content = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not any(name in content for name in _OF_SUBCOMMANDS):
        return recipe
    copy.write_text(yaml.safe_dump({name: value for name, value in content.items() if name not in _OF_SUBCOMMANDS}))
    return str(copy)


def _by_recipes(recipes: Sequence[str], rest: Sequence[str]) -> TrainedScene:
    with tempfile.TemporaryDirectory() as folder:
        recipes = [
            _without_subcommand(resolve_recipe(recipe), Path(folder, f"{i}.yaml")) for i, recipe in enumerate(recipes)
        ]
        cli = build_cli([*(arg for recipe in recipes for arg in ("-c", recipe)), "--seed_everything=false", *rest])
    return TrainedScene(cli.model, cli.datamodule, cli.trainer)


def _by_itself(path: Path | str, content: Plain, rest: Sequence[str], allow: Sequence[str]) -> TrainedScene:
    """As the checkpoint describes itself, on one device of this machine."""
    kinds: Plain = {"model": NeRFModule, "data": NeRFDataModule}
    specs = {name: content.get(kind.CHECKPOINT_HYPER_PARAMS_KEY, {}) for name, kind in kinds.items()}
    for name, spec in specs.items():
        if not isinstance(spec, dict) or not isinstance(spec.get("init_args", {}), dict):
            raise BadArgument(f"--ckpt: {path} describes its {name} by no dict of class_path and init_args")
    lacks = [name for name, spec in specs.items() if not {"class_path", "unnamed"} & set(spec)]
    if lacks:
        raise BadArgument(
            f"-c: {path} does not describe its {' nor its '.join(lacks)}: name the recipe that it was trained with, e.g. "
            f"lightning-nerf render -c blender/instant_ngp --data.root path/to/scene --ckpt {path}"
        )
    parser = BriefParser(prog="lightning-nerf render")
    for name in kinds:
        parser.add_argument(f"--{name}", type=Plain, default={})
    parser.add_class_arguments(L.Trainer, "trainer", fail_untyped=False)
    precision = "bf16-mixed" if torch.cuda.is_available() else "32-true"
    trainer = {"devices": 1, "precision": precision, "logger": False, "enable_checkpointing": False}
    parser.set_defaults({f"trainer.{name}": value for name, value in trainer.items()})
    options: Any = parser.instantiate_classes(parser.parse_args(list(rest)))
    module, data = (_built(specs[name], kind, options[name], allow) for name, kind in kinds.items())
    module.configure_model()
    return TrainedScene(module, data, options.trainer)


def _built(spec: Plain, kind: type, values: Plain, allow: Sequence[str]) -> Any:
    """What a description says, with other arguments. Those that the user names are taken whatever they are."""
    replaced = _replaced(spec, values)
    whole = {name: value for name, value in values.items() if not isinstance(value, dict)}
    return build(replaced, kind, allow=allow, **whole)


def _replaced(spec: Plain, values: Plain) -> Plain:
    """A description with other arguments, also of the parts in it."""
    arguments = dict(spec.get("init_args", {}))
    for name, value in values.items():
        part = arguments.get(name)
        if isinstance(value, dict) and isinstance(part, dict) and "init_args" in part:  # of a part, the parser gives words
            value = _replaced(part, {k: yaml.safe_load(v) if isinstance(v, str) else v for k, v in value.items()})
        arguments[name] = value
    return {**spec, "init_args": arguments}
