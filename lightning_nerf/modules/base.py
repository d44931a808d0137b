"""The LightningModule that every method shares: draw rays, sample, evaluate the field, render, compare."""

from __future__ import annotations

import os
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn.functional import huber_loss, mse_loss
from torch.optim import Optimizer

from lightning_nerf.callbacks.occupancy import OccupancyGridUpdate
from lightning_nerf.callbacks.ray_budget import RayBudget
from lightning_nerf.data.base import BACKGROUNDS, NeRFDataModule
from lightning_nerf.data.views import Views, image_rays, image_truth, truth
from lightning_nerf.estimators.base import Estimator
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.modules.schedule import WarmupDecay
from lightning_nerf.ops.random import STREAM_BACKGROUND, make_key, random_uniform
from lightning_nerf.ops.sample_points import sample_points
from lightning_nerf.renderers.base import Renderer
from lightning_nerf.renderers.volume import VolumeRenderer
from lightning_nerf.types import RayBatch, Rays, Render


def adam(params: Any) -> Optimizer:
    """Adam with the constants of Instant-NGP: rate 1e-2, betas (0.9, 0.99), eps 1e-15, one fused kernel per step."""
    return torch.optim.Adam(params, lr=1e-2, betas=(0.9, 0.99), eps=1e-15, fused=True)


class NeRFModule(L.LightningModule):
    """A radiance field, an estimator that says where to sample it, and a renderer, trained on posed images.

    The loader yields step numbers; rays, pixels, jitter and background are drawn on the device inside the step, each a
    function of (seed, rank, step, ray). A step takes up to ``max_rays`` rays, of which the first ``n_rays`` are active
    (:class:`RayBudget` sets that number on the device), and up to ``samples_per_step`` samples with gradient.

    :meth:`render_loss` is the seam for execution strategies: tensors in, tensors out, no logging, no host synchronisation.

    Args:
        field: the radiance field.
        estimator: where to place samples.
        renderer: how to composite them.
        samples_per_step: capacity of samples with gradient per step. Rays that do not fit are left out of the loss.
        march_factor: on CUDA, samples before pruning fit in ``march_factor * samples_per_step``.
        max_rays: capacity of rays per step.
        initial_rays: active rays in the first step.
        random_background_steps: steps that composite on random colours whatever the data module says. On one colour from
            the start, a field can pass off dark fog in front of it as grey; its colours saturate and never recover.
        huber_delta: errors below it cost quadratically, above it linearly; inf for the mean squared error.
        optimizer: from parameter groups to an optimizer.
        lr_scheduler: from an optimizer to a scheduler that is stepped every training step; default :class:`WarmupDecay`.
        seed: of all draws; default ``seed_everything``'s, else 0.
        eval_samples: samples rendered at once outside training; bounds the memory.
    """

    key: Tensor  # [3] int64: seed, rank, step
    n_rays: Tensor  # [] int32

    def __init__(
        self,
        field: RadianceField,
        estimator: Estimator,
        renderer: Renderer | None = None,
        samples_per_step: int = 2**18,
        march_factor: int = 6,
        max_rays: int = 2**16,
        initial_rays: int = 1024,
        random_background_steps: int = 1000,
        huber_delta: float = 0.1,
        optimizer: OptimizerCallable = adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int | None = None,
        eval_samples: int = 2**21,
    ) -> None:
        super().__init__()
        for name, value in [
            ("samples_per_step", samples_per_step),
            ("march_factor", march_factor),
            ("max_rays", max_rays),
            ("initial_rays", initial_rays),
            ("eval_samples", eval_samples),
        ]:
            if value < 1:
                raise ValueError(f"{name}: expected >= 1, got {value}")
        if initial_rays > max_rays:
            raise ValueError(f"initial_rays: expected <= max_rays = {max_rays}, got {initial_rays}")
        if not huber_delta > 0:
            raise ValueError(f"huber_delta: expected > 0, got {huber_delta}")
        self.field = field
        self.estimator = estimator
        self.renderer = VolumeRenderer() if renderer is None else renderer
        self.samples_per_step = samples_per_step
        self.march_factor = march_factor
        self.max_rays = max_rays
        self.random_background_steps = random_background_steps
        self.huber_delta = huber_delta
        self.eval_samples = eval_samples
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.register_buffer("key", make_key(seed))
        self.register_buffer("n_rays", torch.tensor(initial_rays, dtype=torch.int32))

    def __setattr__(self, name: str, value: Any) -> None:
        if (
            name == "_current_fx_name"
        ):  # Lightning notes the running hook some forty times a step; nn.Module would take 2 us
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # -- wiring ------------------------------------------------------------------------------------------------------

    @property
    def datamodule(self) -> NeRFDataModule:
        """The Trainer's data module."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, NeRFDataModule):
            raise TypeError(f"datamodule: expected a lightning_nerf.data.NeRFDataModule, got {type(datamodule).__name__}")
        return datamodule

    def setup(self, stage: str) -> None:
        """Tell field and estimator where the scene is."""
        box = self.datamodule.scene_box
        self.field.bind(box)
        self.estimator.bind(box)

    def configure_callbacks(self) -> list[Callback]:
        """What training needs, unless the user brought it: grid updates and the ray budget."""
        given = {type(c) for c in self.trainer.callbacks}  # type: ignore[attr-defined]
        return [kind() for kind in (OccupancyGridUpdate, RayBudget) if not any(issubclass(g, kind) for g in given)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer, named: field, then estimator where it has parameters."""
        groups = [("field", self.field), ("estimator", self.estimator)]
        return [
            {"params": parameters, "name": name}
            for name, module in groups
            if (parameters := [p for p in module.parameters() if p.requires_grad])
        ]

    def configure_optimizers(self) -> Any:
        """The optimizer and a scheduler that is stepped every training step."""
        optimizer = self._optimizer(self.parameter_groups())
        if self._lr_scheduler is None:
            steps = self.trainer.estimated_stepping_batches
            if not 0 < steps < float("inf"):  # the loader is endless, so an epoch has no length
                raise ValueError(f"max_steps: the schedule needs Trainer(max_steps=...), got {self.trainer.max_steps}")
            scheduler = WarmupDecay(optimizer, int(steps))
        else:
            scheduler = self._lr_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # -- training ----------------------------------------------------------------------------------------------------

    def draw(self) -> RayBatch:
        """The step's rays: a function of ``self.key``."""
        return self.datamodule.draw(self.key, self.max_rays, self.n_rays)

    def _background(self, batch: RayBatch) -> Tensor:
        if batch.alpha is None:  # nothing shows through: the images were taken on some background
            return self.eval_background()
        n = len(batch.rays.origins)
        background = self.datamodule.draw_background(self.key, n)
        if self.datamodule.background == "random" or self.random_background_steps == 0:
            return background
        drawn = random_uniform(self.key, STREAM_BACKGROUND, n, 3)
        return torch.where(self.key[2] < self.random_background_steps, drawn, background)

    def render_loss(self, batch: RayBatch | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean Huber loss over the rays that count, and device scalars: mse, n_rays, n_samples.

        Without a batch the step's rays are drawn here. Rays count that are active and whose samples fit; the mean is over
        them.
        """
        batch = self.draw() if batch is None else batch
        rays = batch.rays
        exact = rays.origins.device.type == "cpu"  # there a count is free, on CUDA it would stall the step
        samples = self.estimator.sampling(
            rays,
            self.field.density,
            key=self.key,
            capacity=self.samples_per_step,
            march_capacity=None if exact else self.march_factor * self.samples_per_step,
        )
        background = self._background(batch)
        output = self.field(*sample_points(rays, samples))
        render = self.renderer(output, samples, background=background)
        target = truth(batch, background)

        counted = samples.kept if batch.mask is None else samples.kept & batch.mask
        n_rays = counted.sum()
        share = 1 / (3 * n_rays.clamp(min=1))

        def mean(error: Tensor) -> Tensor:
            return torch.where(counted[:, None], error, 0.0).sum() * share

        loss = mean(huber_loss(render.rgb, target, reduction="none", delta=self.huber_delta))
        mse = mean(mse_loss(render.rgb.detach(), target, reduction="none"))
        return loss, {"mse": mse, "n_rays": n_rays, "n_samples": samples.offsets[-1]}

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One step; ``batch`` is a step number (rays are drawn here) or a RayBatch of the user's own loader."""
        # In every step, because DDP broadcasts rank 0's buffers and a checkpoint holds them. The step counts batches, not
        # optimizer steps: accumulated micro-batches differ, and a resumed run goes on.
        self.key[1].fill_(self.global_rank)
        self.key[2].fill_(self.trainer.fit_loop.epoch_loop.total_batch_idx)
        loss, logs = self.render_loss(batch if isinstance(batch, RayBatch) else None)
        return {"loss": loss, **logs}

    # -- evaluation --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def render(self, rays: Rays, background: Tensor | None = None) -> Render:
        """Render any number of rays, at most ``eval_samples`` marched samples at once. Exact: no ray is left out."""
        n, start, size = len(rays.origins), 0, self.eval_samples
        chunks: list[Render] = []
        while start < n or not chunks:
            # A march of fixed capacity says how many rays fit. A ray with more samples than that is taken by itself.
            kept = self.estimator.sampling(_slice(rays, start, start + size), capacity=self.eval_samples).kept
            fit = max(1, int(kept.sum()))
            chunk = _slice(rays, start, start + fit)
            samples = self.estimator.sampling(chunk, self.field.density)
            output = self.field(*sample_points(chunk, samples))
            chunks.append(self.renderer(output, samples, background=background))
            start, size = start + fit, min(self.eval_samples, fit + fit // 2 + 1)
        extras = {name: torch.cat([c.extras[name] for c in chunks]) for name in chunks[0].extras}
        rgb, opacity, depth, n_samples = (torch.cat([c[i] for c in chunks]) for i in range(4))  # type: ignore[arg-type]
        return Render(rgb, opacity, depth, n_samples, extras)

    def eval_background(self) -> Tensor:
        """The colour [3] that evaluation composites on."""
        return torch.full((3,), BACKGROUNDS[self.datamodule.eval_background], device=self.device)

    def render_view(self, views: Views, index: int) -> Render:
        """Render one view, shaped as its image: rgb [H, W, 3], opacity, depth and n_samples [H, W], extras [H, W, k]."""
        height, width = views.images.shape[1:3]
        rays = image_rays(views, index, self.datamodule.near, self.datamodule.far)
        rays = Rays(*(None if t is None else t.to(self.device) for t in rays))  # type: ignore[arg-type]
        render = self.render(rays, self.eval_background())
        return Render(
            render.rgb.view(height, width, 3),
            render.opacity.view(height, width),
            render.depth.view(height, width),
            render.n_samples.view(height, width),
            {name: value.view(height, width, -1) for name, value in render.extras.items()},
        )

    def _evaluation_step(self, split: str, batch: Any) -> dict[str, Any]:
        index, name = batch
        views = self.datamodule.views(split)
        image = views.images[int(index)].to(self.device)
        return {
            "render": self.render_view(views, int(index)),
            "truth": image_truth(image, self.eval_background()),
            "name": name,
        }

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Render one view of the validation split; callbacks score and save it."""
        return self._evaluation_step("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Render one view of the test split; callbacks score and save it."""
        return self._evaluation_step("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Render one view of the test split: its rgb [H, W, 3] on the CPU, since Lightning keeps what this returns."""
        index, name = batch
        render = self.render_view(self.datamodule.views("test"), int(index))
        return {"rgb": render.rgb.cpu(), "name": name}


def _slice(rays: Rays, start: int, stop: int) -> Rays:
    return Rays(*(None if t is None else t[start:stop] for t in rays))  # type: ignore[arg-type]
