"""``lightning-nerf fit | validate | test | predict``: LightningCLI with our recipes and a report at the end of a fit."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI

from lightning_nerf.callbacks.run_folder import run_folder
from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.modules.base import NeRFModule
from lightning_nerf.recipes import resolve_recipe


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


class NeRFCLI(LightningCLI):
    """LightningCLI over any NeRFModule and any NeRFDataModule; ``fit`` ends with a test of the final weights."""

    def _parse_ckpt_path(self) -> None:
        """Leave the model as the command line says; modules refuse a checkpoint that does not fit.

        LightningCLI would silently put all of the checkpoint's settings in place of those that were typed.
        """

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
            print(
                f"\n{results['scene']}: PSNR {results['psnr']:.2f} dB, SSIM {results['ssim'] or float('nan'):.4f} over "
                f"{results['images']} held-out views ({results['psnr_of_mean_image'] or float('nan'):.2f} dB by predicting "
                f"the mean training image); {trained}\n{path.parent}"
            )


def main(args: Sequence[str] | None = None) -> NeRFCLI:
    """Entry point of ``lightning-nerf`` and ``python -m lightning_nerf``."""
    try:
        arguments = resolve_arguments(sys.argv[1:] if args is None else args)
    except FileNotFoundError as error:
        sys.exit(f"lightning-nerf: {error}")
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


def _command_line(**options: Any) -> NeRFCLI:
    # LightningCLI 2.6 makes calls that jsonargparse has deprecated; a user can do nothing about it.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # The loaders hand out step and view numbers; more workers would only add processes.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    return NeRFCLI(
        NeRFModule,
        NeRFDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "lightning-nerf", "epilog": "Also: lightning-nerf render | doctor | bench --help"},
        **options,
    )
