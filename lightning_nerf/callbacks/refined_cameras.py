"""Writes the cameras that a fit has refined."""

from __future__ import annotations

from contextlib import nullcontext

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.ema import EMAWeights
from lightning_nerf.callbacks.run_folder import WritesRunFiles, run_folder
from lightning_nerf.callbacks.trained import trained
from lightning_nerf.data.refined_file import write_views


class WriteRefinedCameras(WritesRunFiles):
    """At the end of a fit, write all views with their cameras as ``transforms.json`` in the run folder.

    Training views have their refined poses and focal lengths, those of other splits the given ones; all are in the units
    of the capture's own files, and each frame states its ``split``. Frames name the original pictures: instant-ngp,
    nerfstudio and ``--data.root=<run folder>`` read the file as it is. :class:`~lightning_nerf.NeRFModule` brings this
    callback where it refines cameras.
    """

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file, of averaged corrections where weights are averaged."""
        path = run_folder(trainer) / "transforms.json"  # on every rank: it asks rank 0
        if not trainer.is_global_zero:
            return
        module = trained(pl_module)
        data = module.datamodule
        scenes = {split: data.scene(split) for split in ("train", "val")}
        if data.source.has_test_views():
            scenes["test"] = data.scene("test")
        averages = next((c for c in lightning_names.callbacks(trainer) if isinstance(c, EMAWeights)), None)
        # EMAWeights sets the averages at the end of a fit, too, but maybe after this callback.
        with nullcontext() if averages is None else averages.averaged(pl_module, trainer):
            scenes["train"] = scenes["train"]._replace(cameras=module.view_cameras("train"))
        write_views(path, {split: scene for split, scene in scenes.items() if scene.n_views}, data.to_world())
        rank_zero_info(f"Refined cameras of {scenes['train'].n_views} training views: {path}")
