"""``lightning-nerf fit | validate | test | predict``: LightningCLI with our recipes and a report at the end of a fit."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from lightning_nerf import cli_words
from lightning_nerf.callbacks.interruption import Interruption
from lightning_nerf.callbacks.loggers import wandb_run_id
from lightning_nerf.callbacks.run_folder import check_run_folder, run_folder
from lightning_nerf.checks import BadArgument, MissingFile, check_integer
from lightning_nerf.cli_errors import BriefParser, refusals_in_a_line
from lightning_nerf.cli_quiet import quiet
from lightning_nerf.cli_report import packages, render_command, report
from lightning_nerf.cli_runs import find_latest, refused_runs_leave_nothing, require_latest, saves_to_url
from lightning_nerf.cli_trainer import check_callbacks, check_settings, refused_settings, shows_bar, with_bar
from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.modules.base import NeRFModule
from lightning_nerf.recipes import checked_loader, resolve_recipe
from lightning_nerf.recorded import Plain

# LightningCLI 2.6 makes calls that jsonargparse has deprecated; a user can do nothing about it.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
# For the files that a recipe or an argument names in place of a value, too.
set_loader("yaml", checked_loader(get_loader("yaml")), exceptions=(yaml.YAMLError,))

_EPILOG = """--resume (fit): go on from the newest checkpoint of this recipe's runs. --allow PACKAGE (repeatable): a
checkpoint may name classes of this package. --ckpt_path takes a file, a run's folder (its newest checkpoint) or, in a fit,
"last": as --resume, or from the beginning if there is none."""
_KEYWORDS = ("best", "last", "hpc", "registry")  # what Lightning takes in place of a checkpoint's path


def resolve_arguments(args: Sequence[str]) -> list[str]:
    """Replace the short recipe names after ``-c`` / ``--config`` by paths."""
    resolved: list[str] = []
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag in ("-c", "--config") and equals:
            resolved.append(f"{flag}={resolve_recipe(value)}")
        elif i > 0 and args[i - 1] in ("-c", "--config"):
            resolved.append(resolve_recipe(arg))
        else:
            resolved.append(arg)
    return resolved


class SaveConfig(SaveConfigCallback):
    """Save ``config.yaml`` in the run folder, and give all of it to every logger as the run's hyper-parameters.

    Without the checkpoint: what is run with the file begins anew. A fit's file is left to it by other commands.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save, once."""
        if self.already_saved:
            return
        path = run_folder(trainer) / self.config_filename  # Lightning's log_dir is all W&B runs' common folder
        if trainer.is_global_zero:
            if "ckpt_path" in self.config:  # without a subcommand there is none
                self.config["ckpt_path"] = None
            if stage == "fit" or not path.exists():
                self.parser.save(self.config, str(path), skip_none=False, overwrite=True, multifile=self.multifile)
            config = json.loads(self.parser.dump(self.config, skip_none=False, format="json"))
            for logger in trainer.loggers:
                logger.log_hyperparams(config)
        self.already_saved = True


class NeRFCLI(LightningCLI):
    """LightningCLI over any NeRFModule and any NeRFDataModule; ``fit`` ends with a test of the final weights.

    Args:
        typed: the command line; None: that of ``args``.
    """

    def __init__(self, *args: Any, typed: cli_words.Typed | None = None, **options: Any) -> None:
        self.typed = cli_words.Typed([], [], False) if typed is None else typed
        self.allow: list[str] = self.typed.allow  # packages whose classes a checkpoint may name
        super().__init__(*args, **options)

    # -- the configuration ---------------------------------------------------------------------------------------------

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and check the settings that Lightning takes without a check."""
        super().parse_arguments(parser, args)
        config = self.config.get(self.config.get("subcommand") or "", self.config)
        seed = config.get("seed_everything")
        if not isinstance(seed, bool) and seed is not None:
            check_integer("seed_everything", seed, 0, 2**32 - 1)
        check_settings(config.trainer)

    def _parse_ckpt_path(self) -> None:
        """Leave the model as the command line says; modules refuse a checkpoint that does not fit.

        LightningCLI would silently put all of the checkpoint's settings in place of those that were typed.
        """

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint that is meant; have a validation that is asked for take place."""
        self.resumed: list[Namespace] = []
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        if self.subcommand == "validate" and config.trainer.get("limit_val_batches") == 0:
            config.trainer.limit_val_batches = None  # recipes have 0: their fits do not validate
        self._find_checkpoint(config)
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        if self.subcommand != "fit" and config.get("ckpt_path") is None and first:
            print(
                f"lightning-nerf {self.subcommand}: no --ckpt_path is given (a checkpoint or a run's folder): these are "
                "the views of a model that was not trained",
                file=sys.stderr,
            )
        if self.subcommand == "fit":
            self._find_wandb_run(config)

    def _find_checkpoint(self, config: Namespace) -> None:
        given = config.get("ckpt_path")
        if self.subcommand == "fit" and (self.typed.resume or given == "last"):
            dumped = json.loads(self._parser("fit").dump(config, skip_none=False, format="json"))
            found = require_latest(dumped) if self.typed.resume else find_latest(dumped)
            if found is not None:
                print(f"going on from {found}")
                config.ckpt_path = str(found)
            elif not saves_to_url(dumped["trainer"]):  # there Lightning looks
                config.ckpt_path = None
                if os.environ.get("LOCAL_RANK", "0") == "0":
                    print("--ckpt_path last: no run of this model and these data has left a checkpoint; a new run begins")
        elif isinstance(given, (str, Path)) and str(given).split(":")[0] not in _KEYWORDS and "://" not in str(given):
            config.ckpt_path = str(cli_words.checkpoint_in(Path(given)))
            if not os.path.isfile(config.ckpt_path):
                raise MissingFile(f"ckpt_path: no file {given}")

    def _find_wandb_run(self, config: Namespace) -> None:
        """Have a resumed fit go on in the W&B run that wrote the checkpoint, unless another id is given."""
        if config.ckpt_path is None or "WANDB_RUN_ID" in os.environ:
            return
        loggers = config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if getattr(logger, "class_path", "").endswith(".WandbLogger"):
                given = logger.init_args
                if given.get("id") is None and given.get("version") is None:
                    given["id"] = wandb_run_id(config.ckpt_path, config.get("weights_only"))
                    self.resumed.append(given)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer with a progress bar and, if a command is run, one that signals end with a checkpoint.

        Forgets the W&B ids that were looked up: loggers have them by now, and what is saved is as it was given.
        """
        for given in self.resumed:
            given["id"] = None
        config = self._get(self.config_init, "trainer", default={})
        self.interruption = Interruption()
        callbacks = with_bar(config.get("callbacks"), has_bar=shows_bar(config))
        check_callbacks([*callbacks, *self.trainer_defaults.get("callbacks", ())])
        callbacks += [self.interruption] if self.subcommand else []
        with refused_settings():
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    # -- commands ------------------------------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it. That the run's files can be written is seen first: loggers would be the next to try, and say less."""
        check_run_folder(self.trainer)
        try:
            with self.interruption.listening(), refused_runs_leave_nothing(self.trainer):
                super()._run_subcommand(subcommand)
        except SystemExit:
            if self.interruption.received is None:
                raise
        if self.interruption.received is not None:
            self._end_interrupted()

    def after_fit(self) -> None:
        """Render the held-out views with the final weights; callbacks score and save them."""
        if self.trainer.interrupted or self.interruption.received is not None:
            return
        if self.datamodule.source.has_test_views():
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        folder = run_folder(self.trainer)
        is_saved = any(folder.rglob("*.ckpt"))
        report(self.trainer, self.datamodule, "fit", self._how_to_render(folder) if is_saved else None)

    def after_test(self) -> None:
        """Say what was scored, on what, and where its files are."""
        checkpoint = self.trainer.ckpt_path
        report(self.trainer, self.datamodule, "test", checkpoint and self._how_to_render(checkpoint))

    def after_validate(self) -> None:
        """Refuse a validation without views; else say what was scored, on what, and where its files are."""
        if not sum(self.trainer.num_val_batches):
            raise BadArgument(
                "validate: nothing was scored, since the data have no validation views (transforms_val.json); "
                "--data.holdout_every=10 makes some of the training views, lightning-nerf test scores the held-out ones"
            )
        is_of_a_checkpoint = bool(self.trainer.ckpt_path)
        following = shlex.join(["lightning-nerf", "test", *self.typed.words[1:]]) if is_of_a_checkpoint else None
        report(self.trainer, self.datamodule, "validate", following)

    def _how_to_render(self, checkpoint: Path | str) -> str:
        """The command; it makes the scene from the checkpoint alone, which may name the user's own packages."""
        own = packages(self.model, self.datamodule)
        return render_command(checkpoint, list(dict.fromkeys([*self.allow, *own])))

    def after_predict(self) -> None:
        """Say where the pictures are."""
        folder = run_folder(self.trainer) / "predictions"
        if not self.trainer.is_global_zero:
            return
        if folder.is_dir():
            print(folder)
        else:
            print("predict: no callback has saved the pictures; --trainer.callbacks+=ImageLogger does", file=sys.stderr)

    def _end_interrupted(self) -> None:
        """Exit as a shell expects of a process that a signal ended, and say how to go on."""
        number = self.interruption.received or 0
        if self.trainer.is_global_zero:
            print(f"\nlightning-nerf {self.subcommand}: interrupted by {signal.Signals(number).name}", file=sys.stderr)
            if self.subcommand == "fit":
                print(self._how_to_go_on(), file=sys.stderr)
        sys.exit(128 + number)

    def _how_to_go_on(self) -> str:
        checkpoint = self.interruption.path
        if checkpoint is None and self.trainer.global_step and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            checkpoint = cli_words.newest(run_folder(self.trainer).rglob("*.ckpt"))  # of a fit that was complete
        if checkpoint is None:
            return "there is no checkpoint to go on from"
        command = ["lightning-nerf", *cli_words.without(self.typed.words, "--ckpt_path"), f"--ckpt_path={checkpoint}"]
        return f"step {self.trainer.global_step} is saved in {checkpoint}\nnext: {shlex.join(command)}"


def main(args: Sequence[str] | None = None) -> NeRFCLI:
    """Entry point of ``lightning-nerf`` and ``python -m lightning_nerf``."""
    typed = cli_words.read(sys.argv[1:] if args is None else args)
    with quiet(), refusals_in_a_line():
        # sys.argv stays as it was typed: further processes of a fit are started with it.
        return _command_line(args=resolve_arguments(typed.words), typed=typed)


def build(args: Sequence[str], callbacks: Sequence[Callback] = ()) -> NeRFCLI:
    """Trainer, model and data module of a command line without its subcommand, for scripts; nothing is run.

    Args:
        args: such as ``["-c", "blender/instant_ngp", "--data.root", "lego"]``; arguments win over configurations.
        callbacks: added to the recipe's.

    Raises:
        FileNotFoundError: no such recipe.
    """
    with quiet():
        words = resolve_arguments(cli_words.configs_first(args))
        return _command_line(args=words, run=False, trainer_defaults={"callbacks": list(callbacks)})


def _command_line(trainer_defaults: Plain | None = None, **options: Any) -> NeRFCLI:
    return NeRFCLI(
        NeRFModule,
        NeRFDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        parser_class=BriefParser,
        save_config_callback=SaveConfig,
        trainer_defaults={"enable_autolog_hparams": False, **(trainer_defaults or {})},  # they are in what SaveConfig logs
        parser_kwargs={"prog": "lightning-nerf", **{name: {"epilog": _EPILOG} for name in cli_words.TRAINER_COMMANDS}},
        **options,
    )
