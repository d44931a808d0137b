"""The LightningModule that every method shares: draw rays, sample, evaluate the field, render, compare."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_nerf.callbacks.ema import EMAWeights
from lightning_nerf.callbacks.occupancy import OccupancyGridUpdate
from lightning_nerf.callbacks.ray_budget import RayBudget
from lightning_nerf.callbacks.resume import CheckedResume
from lightning_nerf.callbacks.wandb_run import WandbRun
from lightning_nerf.checks import BadArgument, BadType, check_instance, check_integer, check_number
from lightning_nerf.data.base import BACKGROUNDS, NeRFDataModule
from lightning_nerf.data.views import Views, checked_batch, image_rays, image_truth
from lightning_nerf.estimators.base import Estimator
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.modules.checkpoints import refuse_another_box
from lightning_nerf.modules.schedule import WarmupDecay
from lightning_nerf.modules.steps import SteppedModule
from lightning_nerf.ops.ray_loss import ray_loss
from lightning_nerf.optim import FusedAdam
from lightning_nerf.renderers.base import Renderer
from lightning_nerf.renderers.volume import VolumeRenderer
from lightning_nerf.step_guard import StepGuard
from lightning_nerf.types import PackedSamples, RayBatch, Rays, Render

FUSED_SAMPLES = 2**25  # marched samples that a field's own render takes at once, at most: 12 bytes each
VIEW_RAYS = 2**20  # rays of a view that exist at once, at most: some 150 bytes each while they are made


def adam(params: Any) -> Optimizer:
    """Adam with the constants of Instant-NGP and an average over the last tenth of all steps, at most 5,000.

    :class:`EMAWeights` evaluates and saves the average. It spares a schedule that has decayed before one may look: after
    6,000 steps on Lego the average at a constant rate is 0.13 dB above the weights of a schedule that decays to end there.
    """
    average = {"ema_decay": 0.9998, "ema_share": 0.1, "ema_every": 4}
    return FusedAdam(params, lr=1e-2, betas=(0.9, 0.99), eps=1e-15, **average)


class NeRFModule(SteppedModule):
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
        check_instance("field", field, RadianceField)
        check_instance("estimator", estimator, Estimator)
        check_instance("renderer", renderer, Renderer, type(None))
        for name, value in [("samples_per_step", samples_per_step), ("max_rays", max_rays), ("eval_samples", eval_samples)]:
            check_integer(name, value, 1, 2**31 - 1)
        check_integer("march_factor", march_factor, 1)
        check_integer("initial_rays", initial_rays, 1)
        if initial_rays > max_rays:
            raise BadArgument(f"initial_rays: expected <= max_rays = {max_rays}, got {initial_rays}")
        check_integer("random_background_steps", random_background_steps, 0)
        check_number("huber_delta", huber_delta, "(0, inf]")
        check_instance("optimizer", optimizer, Callable)
        check_instance("lr_scheduler", lr_scheduler, Callable, type(None))
        if seed is not None:
            check_integer("seed", seed, 0, 2**63 - 1)
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
        self.count_steps(seed)
        self.register_buffer("n_rays", torch.tensor(initial_rays, dtype=torch.int32))
        self.record_arguments()

    # -- wiring ------------------------------------------------------------------------------------------------------

    @property
    def datamodule(self) -> NeRFDataModule:
        """The Trainer's data module."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, NeRFDataModule):
            raise BadType(f"datamodule: expected a lightning_nerf.data.NeRFDataModule, got {type(datamodule).__name__}")
        return datamodule

    def setup(self, stage: str) -> None:
        """Tell field and estimator where the scene is. A field that knows another scene's box is refused."""
        if self.trainer.precision in ("64-true", "16-true", "bf16-true"):
            raise BadArgument(
                f"precision: {type(self).__name__} keeps its weights in float32, expected '32-true', '16-mixed' or "
                f"'bf16-mixed', got {self.trainer.precision!r}"
            )
        repeated = self.trainer.overfit_batches  # type: ignore[attr-defined]
        if repeated and not isinstance(repeated, int):
            raise BadArgument(f"overfit_batches: expected a number of batches, since epochs are endless, got {repeated}")
        box = self.datamodule.scene_box
        refuse_another_box(box.aabb, self.field.aabb, "the data module's")
        self.write_atomically()
        self.field.bind(box)
        self.estimator.bind(box)
        self._named = (-1, -1, -1)

    def configure_callbacks(self) -> list[Callback]:
        """What training needs, unless the user brought it: grid updates, the ray budget, averaged weights."""
        given = {type(c) for c in self.trainer.callbacks}  # type: ignore[attr-defined]
        kinds: list[type[Callback]] = [OccupancyGridUpdate, RayBudget, CheckedResume, WandbRun]
        if self._optimizer is adam:  # another optimizer may keep no average
            kinds.append(EMAWeights)
        return [kind() for kind in kinds if not any(issubclass(g, kind) for g in given)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer, named: field, then estimator where it has parameters."""
        groups = [("field", self.field), ("estimator", self.estimator)]
        return [
            {"params": parameters, "name": name}
            for name, module in groups
            if (parameters := [p for p in module.parameters() if p.requires_grad])
        ]

    def configure_optimizers(self) -> Any:
        """The optimizer and a scheduler that is stepped every training step.

        An optimizer that skips no steps by itself (it has no attribute ``skipped``) gets a :class:`StepGuard`.
        """
        optimizer = self._optimizer(self.parameter_groups())
        if not hasattr(optimizer, "skipped"):
            StepGuard(optimizer)
        averages = any(group.get("ema_decay") is not None for group in optimizer.param_groups)
        if averages and not any(isinstance(c, EMAWeights) for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            rank_zero_warn(
                "the optimizer keeps averaged weights (ema_decay), but no callback uses them: validation, test and "
                "checkpoints have the raw ones. Add lightning_nerf.callbacks.EMAWeights, or set ema_decay to None."
            )
        if self._lr_scheduler is None:
            steps = self.trainer.estimated_stepping_batches
            if not 0 < steps < float("inf"):  # the loader is endless, so an epoch has no length
                raise BadArgument(f"max_steps: the schedule needs Trainer(max_steps=...), got {self.trainer.max_steps}")
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
        return self.datamodule.draw_background(self.key, len(batch.rays.origins), self.random_background_steps)

    def render_loss(self, batch: RayBatch | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and device scalars: mse, n_rays, n_samples. Without a batch the step's rays are drawn here.

        :meth:`losses` compares; override that one to change the loss or to add to it.
        """
        batch = self.draw() if batch is None else batch
        rays = batch.rays
        exact = rays.origins.device.type == "cpu"  # there a count is free, on CUDA it would stall the step
        samples = self.estimator.sample(
            rays,
            self.field.density,
            key=self.key,
            capacity=self.samples_per_step,
            march_capacity=None if exact else self.march_factor * self.samples_per_step,
            ray_density_fn=self.field.ray_densities,
        )
        background = self._background(batch)
        output = self.field.at_samples(rays, samples)
        render = self.renderer(output, samples, background=background)
        loss, logs = self.losses(render, batch, samples.kept, background)
        return loss, {**logs, "n_samples": samples.offsets[-1]}

    def losses(self, render: Render, batch: RayBatch, kept: Tensor, background: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean Huber loss over the rays that count, and mse and n_rays; tensors in, tensors out, as :meth:`render_loss`.

        A ray counts if its samples fit (``kept`` [R]) and it is active (``batch.mask``).
        """
        behind = {"alpha": batch.alpha, "background": background}
        loss, mse, n_rays = ray_loss(render.rgb, batch.rgb, kept=kept, mask=batch.mask, delta=self.huber_delta, **behind)
        return loss, {"mse": mse, "n_rays": n_rays}

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One step; ``batch`` is a step number (rays are drawn here) or a RayBatch of the user's own loader."""
        if not isinstance(batch, (int, Tensor)):
            batch = checked_batch(batch)
        loss, logs = self.executor.step(self, batch if isinstance(batch, RayBatch) else None)
        return {"loss": loss, **logs}

    def borrowed(self) -> Any:
        """What :meth:`draw` reads beside this module's tensors: an object that is replaced when its tensors are."""
        return self.datamodule.lend(self.device)

    # -- evaluation --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def render(self, rays: Rays, background: Tensor | None = None) -> Render:
        """Render any number of rays: exact, no ray is left out.

        In one kernel where the field has one for it (under CUDA autocast, say inside validation and test), with at most
        400 MB of marched samples at once; else with at most ``eval_samples`` of them. ``background`` is [3], or [R, 3].
        """
        render = self._render_fused if self._can_fuse(rays) else self._render_chunk
        n, start = len(rays.origins), 0
        capacity = self.eval_samples
        if render == self._render_fused:  # frames find tens of samples a ray; who finds more takes another round
            capacity = min(FUSED_SAMPLES, max(capacity, 64 * n))
        size = capacity
        chunks: list[Render] = []
        while start < n or not chunks:
            # A march of fixed capacity says how many rays fit. A ray with more samples than that is taken by itself.
            chunk = _slice(rays, start, start + size)
            samples = self.estimator.sample(chunk, capacity=capacity)
            fit = int(samples.kept.sum())
            if fit < len(chunk.origins):
                chunk = _slice(chunk, 0, max(1, fit))
                samples = samples._replace(offsets=samples.offsets[: fit + 1], kept=samples.kept[:fit])
            if fit == 0 and len(chunk.origins) > 0:
                samples = self.estimator.sample(chunk)
            behind = background
            if background is not None and background.ndim == 2:
                behind = background[start : start + len(chunk.origins)]
            chunks.append(render(chunk, samples, behind))
            start, size = start + max(1, fit), min(capacity, fit + fit // 2 + 1)
        return _join(chunks)

    def _render_chunk(self, rays: Rays, marched: PackedSamples, background: Tensor | None) -> Render:
        """As in training: sample, evaluate, composite."""
        samples = self.estimator.sample(rays, self.field.density, ray_density_fn=self.field.ray_densities)
        return self.renderer(self.field.at_samples(rays, samples), samples, background=background)

    def _can_fuse(self, rays: Rays) -> bool:
        """Does the field's own render do what this estimator and this renderer do?"""
        if torch.are_deterministic_algorithms_enabled():  # its sums come in the order in which rays end
            return False
        plain = type(self.renderer) is VolumeRenderer and self.renderer.early_stop_eps == 0
        kind = type(self.estimator)  # who samples in a way of its own has to restate its thresholds
        plain = plain and issubclass(_home(kind, "thresholds"), _home(kind, "sample"))
        return plain and self.estimator.thresholds() is not None and self.field.can_render(rays)

    def _render_fused(self, rays: Rays, marched: PackedSamples, background: Tensor | None) -> Render:
        thresholds = self.estimator.thresholds()
        assert thresholds is not None
        render = self.field.render(rays, marched, *thresholds)
        if background is None:
            return render
        return render._replace(rgb=torch.addcmul(render.rgb, (1 - render.opacity)[:, None], background.float()))

    def eval_background(self) -> Tensor:
        """The colour [3] that evaluation composites on."""
        return torch.full((3,), BACKGROUNDS[self.datamodule.eval_background], device=self.device)

    def render_view(self, views: Views, index: int) -> Render:
        """Render one view, shaped as its image: rgb [H, W, 3], opacity, depth and n_samples [H, W], extras [H, W, k]."""
        return self.render_camera(views, index, self.datamodule.near, self.datamodule.far, self.eval_background())

    def render_camera(self, views: Views, index: int, near: float, far: float, background: Tensor | None = None) -> Render:
        """:meth:`render_view` without a data module: of ``views.images`` only the shape is read. Views of any size fit."""
        height, width = views.images.shape[1:3]
        bands: list[Render] = []
        for start in range(0, height * width, VIEW_RAYS):
            rays = image_rays(views, index, near, far, start, min(start + VIEW_RAYS, height * width))
            bands.append(self.render(rays.map(lambda t: t.to(self.device)), background))
        render = _join(bands)
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


def _home(kind: type, name: str) -> type:
    """The class that defines a method."""
    return next(c for c in kind.__mro__ if name in vars(c))


def _join(parts: list[Render]) -> Render:
    if len(parts) == 1:
        return parts[0]
    extras = {name: torch.cat([p.extras[name] for p in parts]) for name in parts[0].extras}
    rgb, opacity, depth, n_samples = (torch.cat([p[i] for p in parts]) for i in range(4))  # type: ignore[arg-type]
    return Render(rgb, opacity, depth, n_samples, extras)


def _slice(rays: Rays, start: int, stop: int) -> Rays:
    return rays.map(lambda t: t[start:stop])
