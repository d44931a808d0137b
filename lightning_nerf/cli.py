"""``lightning-nerf fit | validate | test | predict``: LightningCLI with our recipes and a report at the end of a fit."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

from lightning_nerf.callbacks.loggers import wandb_run_id
from lightning_nerf.callbacks.run_folder import check_run_folder, run_folder
from lightning_nerf.cli_errors import BriefParser, refusals_in_a_line
from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.modules.base import NeRFModule
from lightning_nerf.recipes import resolve_recipe

# LightningCLI 2.6 makes calls that jsonargparse has deprecated; a user can do nothing about it.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


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
    """LightningCLI over any NeRFModule and any NeRFDataModule; ``fit`` ends with a test of the final weights."""

    def _parse_ckpt_path(self) -> None:
        """Leave the model as the command line says; modules refuse a checkpoint that does not fit.

        LightningCLI would silently put all of the checkpoint's settings in place of those that were typed.
        """

    def before_instantiate_classes(self) -> None:
        """Have a resumed fit go on in the W&B run that wrote the checkpoint, unless another id is given."""
        self.resumed: list[Namespace] = []
        if self.subcommand != "fit" or self.config.fit.ckpt_path is None or "WANDB_RUN_ID" in os.environ:
            return
        loggers = self.config.fit.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if getattr(logger, "class_path", "").endswith(".WandbLogger"):
                given = logger.init_args
                if given.get("id") is None and given.get("version") is None:
                    given["id"] = wandb_run_id(self.config.fit.ckpt_path, self.config.fit.get("weights_only"))
                    self.resumed.append(given)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Forget the ids that were looked up: loggers have them by now, and what is saved is as it was given."""
        for given in self.resumed:
            given["id"] = None
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """See that the run's files can be written: loggers would be the first to try, and say less."""
        check_run_folder(self.trainer)

    def after_fit(self) -> None:
        """Render the held-out views with the final weights; callbacks score and save them."""
        if self.trainer.interrupted:
            return
        self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        path = run_folder(self.trainer) / "results.json"
        if self.trainer.is_global_zero and path.is_file():
            results = json.loads(path.read_text())
            seconds = results["training_seconds"]  # None where the checkpoint of a finished run was resumed
            trained = "no step was left" if seconds is None else f"{results['steps']} steps in {seconds:.1f} s"
            place = "" if self.trainer.fast_dev_run else f"\n{path.parent}"  # type: ignore[attr-defined]  # soon removed
            print(
                f"\n{results['scene']}: PSNR {results['psnr']:.2f} dB, SSIM {results['ssim'] or float('nan'):.4f} over "
                f"{results['images']} held-out views ({results['psnr_of_mean_image'] or float('nan'):.2f} dB by predicting "
                f"the mean training image); {trained}{place}"
            )


def main(args: Sequence[str] | None = None) -> NeRFCLI:
    """Entry point of ``lightning-nerf`` and ``python -m lightning_nerf``."""
    with refusals_in_a_line():
        arguments = resolve_arguments(sys.argv[1:] if args is None else args)
        if args is None:  # LightningCLI warns where it is given arguments beside the command line's
            sys.argv[1:] = arguments
        return _command_line(args=None if args is None else arguments)


def build(args: Sequence[str], callbacks: Sequence[Callback] = ()) -> NeRFCLI:
    """Trainer, model and data module of a command line without its subcommand, for scripts; nothing is run.

    Args:
        args: such as ``["-c", "blender/instant_ngp", "--data.root", "lego"]``.
        callbacks: added to the recipe's.

    Raises:
        FileNotFoundError: no such recipe.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended to run from within Python")
        return _command_line(args=resolve_arguments(args), run=False, trainer_defaults={"callbacks": list(callbacks)})


def _command_line(trainer_defaults: dict[str, Any] | None = None, **options: Any) -> NeRFCLI:
    # The loaders hand out step and view numbers; more workers would only add processes.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    return NeRFCLI(
        NeRFModule,
        NeRFDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        parser_class=BriefParser,
        save_config_callback=SaveConfig,
        trainer_defaults={"enable_autolog_hparams": False, **(trainer_defaults or {})},  # they are in what SaveConfig logs
        parser_kwargs={"prog": "lightning-nerf", "epilog": "Also: lightning-nerf render | doctor | bench --help"},
        **options,
    )
